-- +goose Up
-- Whether devices are there, for the cores through which they do not come.
CREATE TABLE presence (
  device BYTEA PRIMARY KEY,  -- api.DeviceID, 8 bytes
  online BIGINT NOT NULL,
  heard  BIGINT NOT NULL      -- Unix milliseconds
);

-- +goose Down
DROP TABLE presence;
