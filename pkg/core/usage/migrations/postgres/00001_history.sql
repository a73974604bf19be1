-- +goose Up
-- What stood in objects that decide who pays, from when on.
CREATE TABLE history (
  kind   TEXT COLLATE "C" NOT NULL,
  id     TEXT COLLATE "C" NOT NULL,  -- the device's id, and the uid of others
  since  BIGINT NOT NULL,            -- Unix milliseconds by the core's clock
  gone   BIGINT NOT NULL,            -- 1: from then on it is not there
  tenant TEXT COLLATE "C" NOT NULL,  -- its name
  name   TEXT COLLATE "C" NOT NULL,
  body   TEXT COLLATE "C" NOT NULL,  -- JSON
  PRIMARY KEY (kind, id, since)
);
CREATE INDEX history_named ON history (kind, tenant, name, since);

-- +goose Down
DROP TABLE history;
