-- +goose Up
-- what the core knows of the devices' TPMs; the record is package attest's
CREATE TABLE attestations (
  device BLOB PRIMARY KEY,
  record BLOB NOT NULL
) WITHOUT ROWID;
