"""What other tools call things: a word typed from habit is answered with ours. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

_OURS: tuple[tuple[str, str], ...] = (
    (
        "list ls status stat workloads squeue containers processes",
        "`kybernate ps` lists the workloads, `kybernate models` what is served",
    ),
    ("jobs queue queues served serving", "`kybernate models` shows models and jobs"),
    (
        "unload suspend sleep freeze evict offload hibernate swap-out standby checkpoint",
        "`kybernate pause NAME` gives its VRAM back",
    ),
    ("unpause wake wakeup wake-up continue cont thaw restore unfreeze", "`kybernate resume NAME` lets it go on"),
    ("load warm warmup warm-up preload", "`kybernate start NAME` starts a model, `kybernate resume NAME` a paused one"),
    (
        "restart reboot",
        "`kybernate stop NAME` and `kybernate start NAME` for a model or job; `kybernate down` and `kybernate up` for the agent",
    ),
    (
        "kill terminate term end quit cancel scancel abort halt",
        "`kybernate stop NAME` ends a workload, with --grace 0 at once",
    ),
    ("remove delete del forget erase", "`kybernate rm NAME` forgets an ended workload"),
    ("rmi rm-image remove-snapshot delete-snapshot", "`kybernate rm-snapshot IMAGE` deletes an image"),
    ("log tail output journal attach console", "`kybernate logs NAME -f` shows its output"),
    ("describe inspect info show get why", "`kybernate explain NAME` says why it is in its state"),
    ("serve server daemon agent boot launch-agent", "`kybernate up` starts the agent of this node"),
    ("shutdown poweroff", "`kybernate down` ends the agent"),
    ("create launch exec submit sbatch srun spawn", "`kybernate run NAME -- PROGRAM ...` starts a workload"),
    ("image images", "`kybernate snapshots` lists the images"),
    ("save commit dump backup", "`kybernate snapshot NAME --as IMAGE` takes an image"),
    ("fork copy cp duplicate scale replicate", "`kybernate clone IMAGE NEW -n K` makes workloads of an image"),
    ("mv park demote push tier", "`kybernate move NAME --tier TIER` lets a paused workload lie elsewhere"),
    ("fetch stage promote pull", "`kybernate prefetch NAME` reads a workload from the store into host memory"),
    ("prune clean cleanup clean-up purge vacuum", "`kybernate gc` gives back the room of what no snapshot needs"),
    ("config validate lint test verify-config", "`kybernate check FILE` checks a kybernate.yaml"),
    ("apply refresh update sighup", "`kybernate reload` has the agent read its kybernate.yaml again"),
    ("watch monitor stats htop nvtop nvidia-smi usage", "`kybernate top` watches the node"),
    ("ui web gui open browse", "`kybernate dashboard` prints the dashboard's address"),
    ("health diagnose preflight capabilities env", "`kybernate doctor` says what this machine can do"),
    ("timeline trace report", "`kybernate history` shows who held VRAM when"),
    ("audit dmesg", "`kybernate events` shows what happened"),
    ("dry-run dryrun", "`kybernate plan` says what would be done, `kybernate check FILE --dry-run` for a file"),
    ("login auth key password", "`kybernate token` prints the token for the API over TCP"),
    ("benchmark perf", "`kybernate bench pause` measures"),
)
_BY_WORD = {word: text for words, text in _OURS for word in words.split()}


def hint_for(word: str, known: Sequence[str]) -> str:
    """What to type instead of a word that is no command."""
    if (ours := _BY_WORD.get(word.lower())) is not None:
        return ours
    if near := difflib.get_close_matches(word.lower(), known, n=1):
        return f"did you mean {near[0]}?"
    if near := difflib.get_close_matches(word.lower(), _BY_WORD, n=1, cutoff=0.8):
        return _BY_WORD[near[0]]
    return "`kybernate --help` lists the commands"


def words() -> frozenset[str]:
    """Every word that has an answer."""
    return frozenset(_BY_WORD)
