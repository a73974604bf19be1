-- +goose Up
-- who did what: each row's hash covers the row and the hash of the one before
CREATE TABLE audit (
  seq         INTEGER PRIMARY KEY,
  epoch       INTEGER NOT NULL,
  time        INTEGER NOT NULL, -- Unix milliseconds
  tenant      TEXT NOT NULL, -- uid
  tenant_name TEXT NOT NULL,
  actor       TEXT NOT NULL, -- uid
  actor_name  TEXT NOT NULL,
  how         TEXT NOT NULL,
  source      TEXT NOT NULL,
  request     TEXT NOT NULL,
  action      TEXT NOT NULL,
  kind        TEXT NOT NULL,
  name        TEXT NOT NULL,
  uid         TEXT NOT NULL,
  old         BLOB,
  new         BLOB,
  outcome     TEXT NOT NULL,
  message     TEXT NOT NULL,
  count       INTEGER NOT NULL,
  hash        BLOB NOT NULL
);
CREATE INDEX audit_tenant ON audit (tenant, seq);
CREATE INDEX audit_actor ON audit (actor, seq);
CREATE INDEX audit_name ON audit (kind, name, seq);

-- the one row that every writer of the log holds till its end
CREATE TABLE audit_head (
  id   INTEGER PRIMARY KEY,
  seq  INTEGER NOT NULL,
  hash BLOB NOT NULL
);
