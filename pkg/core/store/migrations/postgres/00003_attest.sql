-- +goose Up
-- what the core knows of the devices' TPMs; the record is package attest's
CREATE TABLE attestations (
  device BYTEA PRIMARY KEY,
  record BYTEA NOT NULL
);
