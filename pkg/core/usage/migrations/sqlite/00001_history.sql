-- +goose Up
-- What stood in objects that decide who pays, from when on.
CREATE TABLE history (
  kind   TEXT NOT NULL,
  id     TEXT NOT NULL,  -- the device's id, and the uid of others
  since  INTEGER NOT NULL,            -- Unix milliseconds by the core's clock
  gone   INTEGER NOT NULL,            -- 1: from then on it is not there
  tenant TEXT NOT NULL,  -- its name
  name   TEXT NOT NULL,
  body   TEXT NOT NULL,  -- JSON
  PRIMARY KEY (kind, id, since)
) WITHOUT ROWID;
CREATE INDEX history_named ON history (kind, tenant, name, since);

-- +goose Down
DROP TABLE history;
