-- +goose Up
-- Whether devices are there, for the cores through which they do not come.
CREATE TABLE presence (
  device BLOB PRIMARY KEY,  -- api.DeviceID, 8 bytes
  online INTEGER NOT NULL,
  heard  INTEGER NOT NULL      -- Unix milliseconds
);

-- +goose Down
DROP TABLE presence;
