-- +goose Up
-- What a row of usage says of cards and slices; of few devices, so apart from it.
CREATE TABLE accelerators (
  dev        BIGINT NOT NULL,
  epoch      BIGINT NOT NULL,
  seq        BIGINT NOT NULL,
  svc        BIGINT NOT NULL,
  held_ms    BIGINT NOT NULL,
  slice_ms   BIGINT NOT NULL,
  mem_mibs   BIGINT NOT NULL,
  busy_ms    BIGINT NOT NULL,
  unknown_ms BIGINT NOT NULL,
  energy_mj  BIGINT NOT NULL,
  PRIMARY KEY (dev, epoch, seq, svc)
);

-- +goose Down
DROP TABLE accelerators;
