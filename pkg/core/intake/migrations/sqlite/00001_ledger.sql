-- +goose Up
-- A device's place in the link: attachment, reported state's vector, records' position.
CREATE TABLE devices (
  dev         INTEGER PRIMARY KEY,   -- short number of the device in this file
  device      BLOB NOT NULL UNIQUE,  -- api.DeviceID, 8 bytes
  attachment  BLOB,                  -- COSE_Sign1 by the device
  parent      BLOB,                  -- api.DeviceID that it names; zero is the core
  state_epoch INTEGER NOT NULL DEFAULT 0,
  state_seq   INTEGER NOT NULL DEFAULT 0,
  seen        INTEGER NOT NULL DEFAULT 0,  -- Unix milliseconds by the core's clock
  epoch       INTEGER NOT NULL DEFAULT 0,  -- spool epoch
  acked       INTEGER NOT NULL DEFAULT 0,  -- last record counted
  hash        BLOB,                        -- chain value there; NULL when unknown
  safe        INTEGER NOT NULL DEFAULT 0   -- last record that a backup holds too
);

CREATE TABLE entries (
  dev   INTEGER NOT NULL,
  key   TEXT NOT NULL,
  value BLOB NOT NULL,
  seq   INTEGER NOT NULL,
  mac   BLOB NOT NULL,
  extra BLOB,
  PRIMARY KEY (dev, key)
) WITHOUT ROWID;

-- Where batches ended: the chain values to know repeats and forks by.
CREATE TABLE batches (
  dev   INTEGER NOT NULL,
  epoch INTEGER NOT NULL,
  last  INTEGER NOT NULL,
  first INTEGER NOT NULL,
  hash  BLOB NOT NULL,
  taken INTEGER NOT NULL,  -- Unix milliseconds by the core's clock
  PRIMARY KEY (dev, epoch, last)
) WITHOUT ROWID;

CREATE TABLE services (
  svc     INTEGER PRIMARY KEY,
  app     TEXT NOT NULL,
  service TEXT NOT NULL,
  UNIQUE (app, service)
);

CREATE TABLE usage (
  dev      INTEGER NOT NULL,
  epoch    INTEGER NOT NULL,
  seq      INTEGER NOT NULL,
  svc      INTEGER NOT NULL,  -- 0: the interval held no container
  last     INTEGER NOT NULL,  -- above seq when intervals were summed
  began    INTEGER NOT NULL,  -- Unix milliseconds by the device's clock
  ended    INTEGER NOT NULL,
  run_ms   INTEGER NOT NULL,
  cpu_us   INTEGER NOT NULL,
  mem_bs   INTEGER NOT NULL,
  rx_bytes INTEGER NOT NULL,
  tx_bytes INTEGER NOT NULL,
  PRIMARY KEY (dev, epoch, seq, svc)
) WITHOUT ROWID;

CREATE TABLE events (
  id      INTEGER PRIMARY KEY,  -- in the order they came
  dev     INTEGER NOT NULL,
  epoch   INTEGER NOT NULL,
  seq     INTEGER NOT NULL,
  last    INTEGER NOT NULL,
  audit   INTEGER NOT NULL,
  time    INTEGER NOT NULL,     -- Unix milliseconds by the device's clock
  name    TEXT NOT NULL,
  subject TEXT NOT NULL,
  message TEXT NOT NULL,
  actor   TEXT NOT NULL,
  UNIQUE (dev, epoch, seq)
);

-- Telemetry, records that a device lost, and records that cannot be read.
CREATE TABLE others (
  dev     INTEGER NOT NULL,
  epoch   INTEGER NOT NULL,
  seq     INTEGER NOT NULL,
  last    INTEGER NOT NULL,
  kind    INTEGER NOT NULL,
  poison  TEXT,              -- why it cannot be read
  payload BLOB,
  PRIMARY KEY (dev, epoch, seq)
) WITHOUT ROWID;

-- Set aside for operators: forks, poison, entries with a wrong MAC.
CREATE TABLE quarantine (
  id     INTEGER PRIMARY KEY,
  dev    INTEGER NOT NULL,
  at     INTEGER NOT NULL,
  what   TEXT NOT NULL,
  detail TEXT NOT NULL,
  raw    BLOB
);
CREATE INDEX quarantine_dev ON quarantine (dev, what, id);

-- +goose Down
DROP TABLE devices;
DROP TABLE entries;
DROP TABLE batches;
DROP TABLE services;
DROP TABLE usage;
DROP TABLE events;
DROP TABLE others;
DROP TABLE quarantine;
