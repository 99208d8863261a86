-- Schema version 1. docs/FORMAT.md, section "Database", explains every column.
CREATE TABLE packs (
    base    INTEGER PRIMARY KEY,
    len     INTEGER NOT NULL,
    session TEXT
);
CREATE TABLE chunks (
    n      INTEGER PRIMARY KEY,
    id     BLOB NOT NULL UNIQUE,
    block  INTEGER NOT NULL,
    stored INTEGER NOT NULL,
    raw    INTEGER NOT NULL
);
CREATE TABLE members (
    id    BLOB PRIMARY KEY,
    chunk INTEGER NOT NULL,
    start INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE layers (
    diff_id  BLOB PRIMARY KEY,
    tar_size INTEGER NOT NULL,
    entries  INTEGER NOT NULL,
    held     INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE blobs (
    digest  BLOB PRIMARY KEY,
    diff_id BLOB NOT NULL,
    size    INTEGER NOT NULL,
    kept    INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX blobs_by_layer ON blobs (diff_id);
CREATE TABLE images (
    name     TEXT PRIMARY KEY,
    config   BLOB NOT NULL,
    manifest BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE image_layers (
    config   BLOB NOT NULL,
    position INTEGER NOT NULL,
    diff_id  BLOB NOT NULL,
    PRIMARY KEY (config, position)
) WITHOUT ROWID;
