-- What schema version 2 adds to version 1: snapshots, leases, and what gc remembers.
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
CREATE TABLE dead_chunks (
    n          INTEGER PRIMARY KEY,
    id         BLOB NOT NULL,
    block      INTEGER NOT NULL,
    stored     INTEGER NOT NULL,
    raw        INTEGER NOT NULL,
    generation INTEGER NOT NULL
);
CREATE INDEX dead_chunks_by_id ON dead_chunks (id);
CREATE TABLE leases (
    n       INTEGER PRIMARY KEY AUTOINCREMENT,
    owner   TEXT NOT NULL,
    expires INTEGER
);
CREATE TABLE lease_refs (
    lease  INTEGER NOT NULL,
    kind   INTEGER NOT NULL,
    digest BLOB NOT NULL,
    PRIMARY KEY (lease, kind, digest)
) WITHOUT ROWID;
CREATE TABLE counters (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO counters (name, value) VALUES ('generation', 0), ('top', 0);
