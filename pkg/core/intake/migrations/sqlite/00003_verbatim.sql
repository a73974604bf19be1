-- +goose Up
-- What devices signed, byte for byte: each batch once. Rows of usage are its sums.
CREATE TABLE verbatim (
  dev   INTEGER NOT NULL,
  epoch INTEGER NOT NULL,
  last  INTEGER NOT NULL,
  first INTEGER NOT NULL,  -- of what was counted of it
  taken INTEGER NOT NULL,  -- Unix milliseconds by the core's clock
  prev  BLOB NOT NULL,   -- chain value before the batch, which its signature covers
  raw   BLOB NOT NULL,
  PRIMARY KEY (dev, epoch, last)
);

-- A row of usage is a run of records that follow each other in one batch and end on one
-- UTC day; cut says that a cut point ends it.
ALTER TABLE usage ADD COLUMN cut INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage ADD COLUMN records INTEGER NOT NULL DEFAULT 1;
CREATE INDEX usage_ended ON usage (dev, ended);

-- What a row of usage says beside, by meter.
CREATE TABLE meters (
  dev      INTEGER NOT NULL,
  epoch    INTEGER NOT NULL,
  seq      INTEGER NOT NULL,
  svc      INTEGER NOT NULL,
  meter    TEXT NOT NULL,
  quantity INTEGER NOT NULL,
  PRIMARY KEY (dev, epoch, seq, svc, meter)
) WITHOUT ROWID;

-- +goose Down
DROP TABLE meters;
DROP INDEX usage_ended;
ALTER TABLE usage DROP COLUMN records;
ALTER TABLE usage DROP COLUMN cut;
DROP TABLE verbatim;
