-- +goose Up
-- the newest changes of objects, for processes that did not make them; of a file there is one process alone, and nothing is written here
CREATE TABLE changes (
  revision INTEGER PRIMARY KEY,
  kind     TEXT NOT NULL,
  tenant   TEXT NOT NULL,
  name     TEXT NOT NULL,
  what     INTEGER NOT NULL -- 0: spec, 1: status alone, 2: deleted
);
