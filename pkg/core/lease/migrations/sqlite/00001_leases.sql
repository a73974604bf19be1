-- +goose Up
-- The cores that are there.
CREATE TABLE replicas (
  name    TEXT PRIMARY KEY,
  holder  TEXT NOT NULL,  -- this life of it
  address TEXT NOT NULL,  -- where other replicas reach its HTTPS
  expires INTEGER NOT NULL             -- Unix milliseconds by this database's clock
);

-- What one of them does at a time. The number grows with each that takes it.
CREATE TABLE leases (
  name    TEXT PRIMARY KEY,
  holder  TEXT NOT NULL,  -- "" for nobody
  fence   INTEGER NOT NULL,
  expires INTEGER NOT NULL,
  -- So that a change of the number waits for those who hold the row FOR KEY SHARE, and a
  -- renewal does not.
  UNIQUE (name, fence)
);

-- +goose Down
DROP TABLE replicas;
DROP TABLE leases;
