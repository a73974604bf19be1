-- +goose Up
CREATE TABLE objects (
  tenant      TEXT COLLATE "C" NOT NULL,
  kind        TEXT COLLATE "C" NOT NULL,
  name        TEXT COLLATE "C" NOT NULL,
  uid         TEXT COLLATE "C" NOT NULL,
  labels      TEXT COLLATE "C" NOT NULL, -- JSON object
  annotations TEXT COLLATE "C" NOT NULL, -- JSON object
  spec        BYTEA,
  status      BYTEA,
  revision    BIGINT NOT NULL,
  generation  BIGINT NOT NULL,
  created     BIGINT NOT NULL, -- Unix milliseconds
  updated     BIGINT NOT NULL,
  PRIMARY KEY (kind, tenant, name)
);

-- revision, epoch and other counters of the core itself
CREATE TABLE meta (
  key   TEXT COLLATE "C" PRIMARY KEY,
  value BIGINT NOT NULL
);

-- the newest manifest of each device, and what rendering the next one needs
CREATE TABLE manifests (
  device     BYTEA PRIMARY KEY,
  epoch      BIGINT NOT NULL,
  generation BIGINT NOT NULL,
  raw        BYTEA NOT NULL, -- COSE_Sign1
  tombstones BYTEA NOT NULL, -- CBOR map item key -> generation of removal
  seals      BYTEA NOT NULL  -- CBOR map item key -> hash of what was sealed, and to whom
);

CREATE TABLE tokens (
  id      TEXT COLLATE "C" PRIMARY KEY,
  hash    BYTEA NOT NULL, -- SHA-256 of the secret part
  name    TEXT COLLATE "C" NOT NULL,
  role    TEXT COLLATE "C" NOT NULL,
  created BIGINT NOT NULL,
  expires BIGINT NOT NULL -- Unix seconds, 0: never
);

-- the keys of each device, and by which token it came
CREATE TABLE boxes (
  device     BYTEA PRIMARY KEY,
  tenant     TEXT COLLATE "C" NOT NULL,
  name       TEXT COLLATE "C" NOT NULL,
  public_key BYTEA NOT NULL, -- PKIX, DER
  seal_key   BYTEA NOT NULL, -- PKIX, DER
  token      TEXT COLLATE "C" NOT NULL  -- UID of the JoinToken
);
CREATE UNIQUE INDEX boxes_name ON boxes (tenant, name);
