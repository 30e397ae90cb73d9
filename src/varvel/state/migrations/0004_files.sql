-- Checksums of files under DIR/files, good as long as size and mtime of the inode are these.
CREATE TABLE file_checksums (
    owner TEXT NOT NULL,
    inode INTEGER NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    sha256 BLOB NOT NULL,
    md5 BLOB NOT NULL,
    PRIMARY KEY (owner, inode)
) STRICT, WITHOUT ROWID;
