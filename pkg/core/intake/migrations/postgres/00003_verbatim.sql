-- +goose Up
-- What devices signed, byte for byte: each batch once. Rows of usage are its sums.
CREATE TABLE verbatim (
  dev   BIGINT NOT NULL,
  epoch BIGINT NOT NULL,
  last  BIGINT NOT NULL,
  first BIGINT NOT NULL,  -- of what was counted of it
  taken BIGINT NOT NULL,  -- Unix milliseconds by the core's clock
  prev  BYTEA NOT NULL,   -- chain value before the batch, which its signature covers
  raw   BYTEA NOT NULL,
  PRIMARY KEY (dev, epoch, last)
);

-- A row of usage is a run of records that follow each other in one batch and end on one
-- UTC day; cut says that a cut point ends it.
ALTER TABLE usage ADD COLUMN cut BIGINT NOT NULL DEFAULT 0;
ALTER TABLE usage ADD COLUMN records BIGINT NOT NULL DEFAULT 1;
CREATE INDEX usage_ended ON usage (dev, ended);

-- What a row of usage says beside, by meter.
CREATE TABLE meters (
  dev      BIGINT NOT NULL,
  epoch    BIGINT NOT NULL,
  seq      BIGINT NOT NULL,
  svc      BIGINT NOT NULL,
  meter    TEXT COLLATE "C" NOT NULL,
  quantity BIGINT NOT NULL,
  PRIMARY KEY (dev, epoch, seq, svc, meter)
);

-- +goose Down
DROP TABLE meters;
DROP INDEX usage_ended;
ALTER TABLE usage DROP COLUMN records;
ALTER TABLE usage DROP COLUMN cut;
DROP TABLE verbatim;
