"""What in a command is most likely not meant so: words for a shell where none is asked, another port, a program that starts the
real one out of our sight. Pure.

Limits: a guess by words. Programs read their arguments as they like, so nothing of this is refused.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import PurePath

_SHELLS = frozenset({"sh", "bash", "dash", "ash", "zsh", "ksh", "fish", "busybox"})
_OPERATOR = re.compile(r"&&|\|\|?|;|&|\d?>{1,2}(&?\d|\S*)|<\S*|\d?>&\d")
_VARIABLE = re.compile(r"\$(\{[A-Za-z_]\w*\}|[A-Za-z_]\w*|\(.*)")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
_PORT = re.compile(
    r"(?:^|\s)--?(?:port|http-port|server-port|listen|bind|addr|address|host)[= ](?:\S*:)?(\d{1,5})(?=\s|$)"
)
_BUILT_INTO_SHELLS = frozenset({"cd", "export", "source", ".", "ulimit", "set", "exec", "eval", "alias", "umask"})
_OTHER_USERS = frozenset({"sudo", "su", "doas", "pkexec", "runuser"})
_ELSEWHERE = {
    **dict.fromkeys(("docker", "podman", "nerdctl", "ctr", "crictl", "apptainer", "singularity", "lxc"), "a container"),
    **dict.fromkeys(("ssh", "srun", "sbatch", "kubectl", "mosh"), "another machine"),
    **dict.fromkeys(("systemd-run", "systemctl", "machinectl", "tmux", "screen", "at", "batch"), "another session"),
}
_WRAPPERS = frozenset({"nice", "nohup", "exec", "time", "numactl", "taskset", "ionice", "stdbuf", "setsid", "timeout"})


def of_command(words: Sequence[str], *, port: int | None = None) -> Iterator[str]:
    """A sentence each.

    Args:
        port: where the configuration says that it listens; None: nowhere.
    """
    if not words:
        return
    script = _script(words)
    if script is None:
        yield from _without_a_shell(words)
    for program in _programs(words, script):
        yield from _out_of_sight(program)
    said = [int(found) for found in _PORT.findall(" ".join(words))]
    if port is not None and said and port not in said:
        yield f"it says port {said[0]}, and `port` is {port}: requests go to {port}"


def _script(words: Sequence[str]) -> str | None:
    """What a shell is told to do, where one is asked."""
    rest = _behind_wrappers(words)
    if not rest or PurePath(rest[0]).name not in _SHELLS:
        return None
    for i, word in enumerate(rest[1:-1], 1):
        if re.fullmatch(r"-[a-z]*c", word):
            return rest[i + 1]
    return ""


def _without_a_shell(words: Sequence[str]) -> Iterator[str]:
    how = "no shell is asked; `[sh, -c, 'exec ...']` asks one"
    if (operator := next((word for word in words[1:] if _OPERATOR.fullmatch(word)), None)) is not None:
        yield f"`{operator}` is an argument of the program: {how}"
    elif (glued := next((word for word in words[:-1] if word.endswith(";")), None)) is not None:
        yield f"`{glued}` is an argument with its semicolon: {how}"
    if (named := next((word for word in words if _VARIABLE.search(word)), None)) is not None:
        found = _VARIABLE.search(named)
        assert found is not None
        yield f"`{found[0]}` is passed on as it stands: {how}"
    if (home := next((word for word in words if word == "~" or word.startswith("~/")), None)) is not None:
        yield f"`{home}` is passed on as it stands: write the directory, {how}"
    if (comment := next((word for word in words if word.startswith("#")), None)) is not None:
        yield (
            f"`{comment}` is an argument, no comment: within a text of several lines (`>` or `|`) YAML knows none, and so is "
            "what follows it"
        )
    if _ASSIGNMENT.fullmatch(words[0]):
        yield f"`{words[0].partition('=')[0]}=` before a program is a shell's: set it in `environment`"
    elif words[0] in _BUILT_INTO_SHELLS:
        instead = "set `directory`" if words[0] == "cd" else "set `environment`" if words[0] == "export" else how
        yield f"`{words[0]}` is a shell's word and no program: {instead}"


def _programs(words: Sequence[str], script: str | None) -> Iterator[Sequence[str]]:
    """Each program that is started with its arguments, as far as words tell."""
    if (rest := _behind_wrappers(words)) and script is None:
        yield rest
    if not script:
        return
    try:
        lexer = shlex.shlex(script, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        tokens = list(lexer)
    except ValueError:
        return
    line: list[str] = []
    for token in [*tokens, ";"]:
        if token and set(token) <= set("&|;()"):
            if rest := _behind_wrappers(line):
                yield rest
            line = []
        else:
            line.append(token)


def _behind_wrappers(words: Sequence[str]) -> Sequence[str]:
    at = 0
    wrapped = False
    while at < len(words):
        word = words[at]
        name = PurePath(word).name
        if (name == "env" and not _clears(words[at:])) or name in _WRAPPERS:
            wrapped = True
        elif not (_ASSIGNMENT.fullmatch(word) or (wrapped and (word.startswith("-") or word[:1].isdigit()))):
            break
        at += 1
    return words[at:]


def _clears(words: Sequence[str]) -> bool:
    """`env` without what its caller has in its environment, or without our library."""
    for at, word in enumerate(words[1:], 1):
        if word in ("-i", "-", "--ignore-environment"):
            return True
        if word in ("-u", "--unset") and list(words[at + 1 : at + 2]) == ["LD_PRELOAD"]:
            return True
        if word in ("-uLD_PRELOAD", "--unset=LD_PRELOAD"):
            return True
        if not word.startswith("-") and not _ASSIGNMENT.fullmatch(word):
            return False
    return False


def _out_of_sight(words: Sequence[str]) -> Iterator[str]:
    name = PurePath(words[0]).name
    slow = "only the driver's checkpoint then moves its VRAM"
    if name in _OTHER_USERS:
        yield f"{name} drops LD_PRELOAD, so {slow}: leave it out and set `user`"
    elif name == "env" and _clears(words):
        yield f"`env` without LD_PRELOAD: {slow}; name the variables to change in `environment`"
    elif (where := _ELSEWHERE.get(name)) is not None:
        yield f"{name} starts the program in {where}, out of Kybernate's sight: start the program itself"
