-- What schema version 4 adds: a second copy of where small files are, which imports hold the first against before they take
-- a file for one that is there. It also says that packs may have tables of version 2, with sums of the stored bytes, which
-- a build that knows only version 3 cannot read.
CREATE INDEX members_by_place ON members (chunk, start);
