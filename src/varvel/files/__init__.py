"""The `/data` storage: folders of files, whole and checksummed."""
