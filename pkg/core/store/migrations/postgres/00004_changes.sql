-- +goose Up
-- the newest changes of objects, for processes that did not make them
CREATE TABLE changes (
  revision BIGINT PRIMARY KEY,
  kind     TEXT COLLATE "C" NOT NULL,
  tenant   TEXT COLLATE "C" NOT NULL,
  name     TEXT COLLATE "C" NOT NULL,
  what     BIGINT NOT NULL -- 0: spec, 1: status alone, 2: deleted
);
