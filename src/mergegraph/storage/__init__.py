"""All file access: headers and tensor bytes in, shards and the files beside them out."""
