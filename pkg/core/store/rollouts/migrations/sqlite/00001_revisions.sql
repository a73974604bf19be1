-- +goose Up
-- what was applied, for good
CREATE TABLE revisions (
  kind    TEXT NOT NULL,
  tenant  TEXT NOT NULL,
  name    TEXT NOT NULL,
  number  INTEGER NOT NULL,
  digest  TEXT NOT NULL,
  pins    TEXT NOT NULL, -- JSON list of what it refers to, by number and digest
  spec    BLOB,          -- of a Secret encrypted; nothing once it was revoked
  status  BLOB,
  created INTEGER NOT NULL, -- Unix milliseconds
  revoked INTEGER NOT NULL, -- likewise; 0: it is not
  PRIMARY KEY (kind, tenant, name, number)
) WITHOUT ROWID;

-- which revision a device has; device is empty for all those that have no row of their own
CREATE TABLE given (
  kind     TEXT NOT NULL,
  tenant   TEXT NOT NULL,
  name     TEXT NOT NULL,
  device   TEXT NOT NULL,
  revision INTEGER NOT NULL,
  rollout  TEXT NOT NULL, -- UID of the Rollout that gave it; "pin" for a person
  permit   BLOB,          -- JSON
  PRIMARY KEY (kind, tenant, name, device)
) WITHOUT ROWID;

-- the history of the rows of given that are for all
CREATE TABLE turns (
  kind     TEXT NOT NULL,
  tenant   TEXT NOT NULL,
  name     TEXT NOT NULL,
  seq      INTEGER NOT NULL,
  revision INTEGER NOT NULL,
  before   INTEGER NOT NULL, -- 0: nothing
  rollout  TEXT NOT NULL,    -- name of the Rollout; empty: an apply
  time     INTEGER NOT NULL, -- Unix milliseconds
  PRIMARY KEY (kind, tenant, name, seq)
) WITHOUT ROWID;

-- what a Rollout has for itself until it ends; next is given to all then, when it is not 0
CREATE TABLE busy (
  kind    TEXT NOT NULL,
  tenant  TEXT NOT NULL,
  name    TEXT NOT NULL,
  rollout TEXT NOT NULL,
  next    INTEGER NOT NULL,
  PRIMARY KEY (kind, tenant, name)
) WITHOUT ROWID;

-- how far each device of a Rollout is
CREATE TABLE rollout_devices (
  rollout TEXT NOT NULL,
  device  TEXT NOT NULL,
  state   BLOB NOT NULL, -- JSON
  PRIMARY KEY (rollout, device)
) WITHOUT ROWID;

-- the devices that are interrupted now, of all rollouts
CREATE TABLE slots (
  device  TEXT PRIMARY KEY,
  rollout TEXT NOT NULL,
  tenant  TEXT NOT NULL,
  site    TEXT NOT NULL,
  relay   INTEGER NOT NULL
) WITHOUT ROWID;
