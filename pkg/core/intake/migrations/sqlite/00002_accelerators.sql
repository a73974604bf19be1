-- +goose Up
-- What a row of usage says of cards and slices; of few devices, so apart from it.
CREATE TABLE accelerators (
  dev        INTEGER NOT NULL,
  epoch      INTEGER NOT NULL,
  seq        INTEGER NOT NULL,
  svc        INTEGER NOT NULL,
  held_ms    INTEGER NOT NULL,
  slice_ms   INTEGER NOT NULL,
  mem_mibs   INTEGER NOT NULL,
  busy_ms    INTEGER NOT NULL,
  unknown_ms INTEGER NOT NULL,
  energy_mj  INTEGER NOT NULL,
  PRIMARY KEY (dev, epoch, seq, svc)
) WITHOUT ROWID;

-- +goose Down
DROP TABLE accelerators;
