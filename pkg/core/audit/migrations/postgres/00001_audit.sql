-- +goose Up
-- who did what: each row's hash covers the row and the hash of the one before
CREATE TABLE audit (
  seq         BIGINT PRIMARY KEY,
  epoch       BIGINT NOT NULL,
  time        BIGINT NOT NULL, -- Unix milliseconds
  tenant      TEXT COLLATE "C" NOT NULL, -- uid
  tenant_name TEXT COLLATE "C" NOT NULL,
  actor       TEXT COLLATE "C" NOT NULL, -- uid
  actor_name  TEXT COLLATE "C" NOT NULL,
  how         TEXT COLLATE "C" NOT NULL,
  source      TEXT COLLATE "C" NOT NULL,
  request     TEXT COLLATE "C" NOT NULL,
  action      TEXT COLLATE "C" NOT NULL,
  kind        TEXT COLLATE "C" NOT NULL,
  name        TEXT COLLATE "C" NOT NULL,
  uid         TEXT COLLATE "C" NOT NULL,
  old         BYTEA,
  new         BYTEA,
  outcome     TEXT COLLATE "C" NOT NULL,
  message     TEXT COLLATE "C" NOT NULL,
  count       BIGINT NOT NULL,
  hash        BYTEA NOT NULL
);
CREATE INDEX audit_tenant ON audit (tenant, seq);
CREATE INDEX audit_actor ON audit (actor, seq);
CREATE INDEX audit_name ON audit (kind, name, seq);

-- the one row that every writer of the log holds till its end
CREATE TABLE audit_head (
  id   BIGINT PRIMARY KEY,
  seq  BIGINT NOT NULL,
  hash BYTEA NOT NULL
);
