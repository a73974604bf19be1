-- +goose Up
-- what the core itself noted of devices; what they tell stands in the ledger
CREATE TABLE events (
  id      INTEGER PRIMARY KEY, -- in the order they were noted
  device  BLOB NOT NULL,
  label   TEXT NOT NULL,       -- the device's name then
  time    INTEGER NOT NULL,    -- Unix milliseconds
  name    TEXT NOT NULL,
  subject TEXT NOT NULL,
  message TEXT NOT NULL,
  actor   TEXT NOT NULL
);
CREATE INDEX events_device ON events (device, id);
