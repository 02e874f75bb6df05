"""Snapshots at rest: content-addressed chunks in packs, manifests written last, in tiers on a disk or in a bucket.

`design.md` beside this file says how it holds together.
"""

from kybernate.store.budget import Usage
from kybernate.store.catalog import Catalog
from kybernate.store.checking import Problem, Verified, verify
from kybernate.store.errors import Damaged, TierAway, TierRefused, TierWiped, TooNew, WrongKey
from kybernate.store.feeding import Feeds
from kybernate.store.gc import Swept, collect
from kybernate.store.local import LocalMedium
from kybernate.store.manifests import Manifest, StoredExtent, StoredFile
from kybernate.store.memory import view_at
from kybernate.store.moving import Step, copy, move
from kybernate.store.needs import FileNeed, GpuNeed, Host, Needs, differences
from kybernate.store.objects import ObjectMedium
from kybernate.store.piping import Piped
from kybernate.store.reading import SnapshotReader
from kybernate.store.sessions import open_reader, open_writer
from kybernate.store.space_catalog import SnapshotRow
from kybernate.store.spaces import Changes, Space
from kybernate.store.tenants import (
    DEFAULT_TENANT,
    Keys,
    TenantName,
    keys_of,
    secret_from_command,
    secret_from_file,
    tenant_name,
)
from kybernate.store.tiers import Tier
from kybernate.store.writing import SnapshotWriter

__all__ = [
    "DEFAULT_TENANT",
    "Catalog",
    "Changes",
    "Damaged",
    "Feeds",
    "FileNeed",
    "GpuNeed",
    "Host",
    "Keys",
    "LocalMedium",
    "Manifest",
    "Needs",
    "ObjectMedium",
    "Piped",
    "Problem",
    "SnapshotReader",
    "SnapshotRow",
    "SnapshotWriter",
    "Space",
    "Step",
    "StoredExtent",
    "StoredFile",
    "Swept",
    "TenantName",
    "Tier",
    "TierAway",
    "TierRefused",
    "TierWiped",
    "TooNew",
    "Usage",
    "Verified",
    "WrongKey",
    "collect",
    "copy",
    "differences",
    "keys_of",
    "move",
    "open_reader",
    "open_writer",
    "secret_from_command",
    "secret_from_file",
    "tenant_name",
    "verify",
    "view_at",
]
