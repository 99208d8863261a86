-- From schema version 1 to 2: snapshots.
CREATE TABLE snapshots (
    n         INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace TEXT NOT NULL,
    key       TEXT NOT NULL,
    kind      INTEGER NOT NULL,
    parent    INTEGER,
    layer     BLOB,
    form      INTEGER NOT NULL,
    lowers    TEXT NOT NULL,
    bytes     INTEGER NOT NULL,
    inodes    INTEGER NOT NULL,
    created   INTEGER NOT NULL,
    updated   INTEGER NOT NULL,
    UNIQUE (namespace, key)
);
CREATE INDEX snapshots_by_parent ON snapshots (parent);
CREATE TABLE snapshot_labels (
    snapshot INTEGER NOT NULL,
    name     TEXT NOT NULL,
    value    TEXT NOT NULL,
    PRIMARY KEY (snapshot, name)
) WITHOUT ROWID;
