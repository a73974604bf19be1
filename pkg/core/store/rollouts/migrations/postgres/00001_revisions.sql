-- +goose Up
-- what was applied, for good
CREATE TABLE revisions (
  kind    TEXT COLLATE "C" NOT NULL,
  tenant  TEXT COLLATE "C" NOT NULL,
  name    TEXT COLLATE "C" NOT NULL,
  number  BIGINT NOT NULL,
  digest  TEXT COLLATE "C" NOT NULL,
  pins    TEXT COLLATE "C" NOT NULL, -- JSON list of what it refers to, by number and digest
  spec    BYTEA,          -- of a Secret encrypted; nothing once it was revoked
  status  BYTEA,
  created BIGINT NOT NULL, -- Unix milliseconds
  revoked BIGINT NOT NULL, -- likewise; 0: it is not
  PRIMARY KEY (kind, tenant, name, number)
);

-- which revision a device has; device is empty for all those that have no row of their own
CREATE TABLE given (
  kind     TEXT COLLATE "C" NOT NULL,
  tenant   TEXT COLLATE "C" NOT NULL,
  name     TEXT COLLATE "C" NOT NULL,
  device   TEXT COLLATE "C" NOT NULL,
  revision BIGINT NOT NULL,
  rollout  TEXT COLLATE "C" NOT NULL, -- UID of the Rollout that gave it; "pin" for a person
  permit   BYTEA,          -- JSON
  PRIMARY KEY (kind, tenant, name, device)
);

-- the history of the rows of given that are for all
CREATE TABLE turns (
  kind     TEXT COLLATE "C" NOT NULL,
  tenant   TEXT COLLATE "C" NOT NULL,
  name     TEXT COLLATE "C" NOT NULL,
  seq      BIGINT NOT NULL,
  revision BIGINT NOT NULL,
  before   BIGINT NOT NULL, -- 0: nothing
  rollout  TEXT COLLATE "C" NOT NULL,    -- name of the Rollout; empty: an apply
  time     BIGINT NOT NULL, -- Unix milliseconds
  PRIMARY KEY (kind, tenant, name, seq)
);

-- what a Rollout has for itself until it ends; next is given to all then, when it is not 0
CREATE TABLE busy (
  kind    TEXT COLLATE "C" NOT NULL,
  tenant  TEXT COLLATE "C" NOT NULL,
  name    TEXT COLLATE "C" NOT NULL,
  rollout TEXT COLLATE "C" NOT NULL,
  next    BIGINT NOT NULL,
  PRIMARY KEY (kind, tenant, name)
);

-- how far each device of a Rollout is
CREATE TABLE rollout_devices (
  rollout TEXT COLLATE "C" NOT NULL,
  device  TEXT COLLATE "C" NOT NULL,
  state   BYTEA NOT NULL, -- JSON
  PRIMARY KEY (rollout, device)
);

-- the devices that are interrupted now, of all rollouts
CREATE TABLE slots (
  device  TEXT COLLATE "C" PRIMARY KEY,
  rollout TEXT COLLATE "C" NOT NULL,
  tenant  TEXT COLLATE "C" NOT NULL,
  site    TEXT COLLATE "C" NOT NULL,
  relay   BIGINT NOT NULL
);
