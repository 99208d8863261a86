-- What schema version 3 adds: a second copy of what nothing but the database knows. SQLite keeps it in step, and a full
-- fsck has SQLite compare the two, so that a single damaged byte in either is found. No query needs these; they begin
-- like their tables, so that whatever reads one of them reads the same order.
CREATE INDEX packs_twice ON packs (base, len, session);
CREATE INDEX layers_twice ON layers (diff_id, held);
CREATE INDEX images_twice ON images (name, config, manifest);
CREATE INDEX snapshots_twice ON snapshots (n, kind, parent, layer, form, bytes, inodes, created, updated, lowers);
CREATE INDEX snapshot_labels_twice ON snapshot_labels (snapshot, name, value);
CREATE INDEX leases_twice ON leases (n, owner, expires);
CREATE INDEX lease_refs_twice ON lease_refs (lease, kind, digest);
CREATE INDEX counters_twice ON counters (name, value);
-- These are needed, and have the rest of their rows from now on.
DROP INDEX blobs_by_layer;
CREATE INDEX blobs_by_layer ON blobs (diff_id, size, kept);
DROP INDEX dead_chunks_by_id;
CREATE INDEX dead_chunks_by_id ON dead_chunks (id, block, stored, raw, generation);
