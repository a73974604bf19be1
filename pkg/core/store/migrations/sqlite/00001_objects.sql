-- +goose Up
CREATE TABLE objects (
  tenant      TEXT NOT NULL,
  kind        TEXT NOT NULL,
  name        TEXT NOT NULL,
  uid         TEXT NOT NULL,
  labels      TEXT NOT NULL, -- JSON object
  annotations TEXT NOT NULL, -- JSON object
  spec        BLOB,
  status      BLOB,
  revision    INTEGER NOT NULL,
  generation  INTEGER NOT NULL,
  created     INTEGER NOT NULL, -- Unix milliseconds
  updated     INTEGER NOT NULL,
  PRIMARY KEY (kind, tenant, name)
) WITHOUT ROWID;

-- revision, epoch and other counters of the core itself
CREATE TABLE meta (
  key   TEXT PRIMARY KEY,
  value INTEGER NOT NULL
) WITHOUT ROWID;

-- the newest manifest of each device, and what rendering the next one needs
CREATE TABLE manifests (
  device     BLOB PRIMARY KEY,
  epoch      INTEGER NOT NULL,
  generation INTEGER NOT NULL,
  raw        BLOB NOT NULL, -- COSE_Sign1
  tombstones BLOB NOT NULL, -- CBOR map item key -> generation of removal
  seals      BLOB NOT NULL  -- CBOR map item key -> hash of what was sealed, and to whom
) WITHOUT ROWID;

CREATE TABLE tokens (
  id      TEXT PRIMARY KEY,
  hash    BLOB NOT NULL, -- SHA-256 of the secret part
  name    TEXT NOT NULL,
  role    TEXT NOT NULL,
  created INTEGER NOT NULL,
  expires INTEGER NOT NULL -- Unix seconds, 0: never
) WITHOUT ROWID;

-- the keys of each device, and by which token it came
CREATE TABLE boxes (
  device     BLOB PRIMARY KEY,
  tenant     TEXT NOT NULL,
  name       TEXT NOT NULL,
  public_key BLOB NOT NULL, -- PKIX, DER
  seal_key   BLOB NOT NULL, -- PKIX, DER
  token      TEXT NOT NULL  -- UID of the JoinToken
) WITHOUT ROWID;
CREATE UNIQUE INDEX boxes_name ON boxes (tenant, name);
