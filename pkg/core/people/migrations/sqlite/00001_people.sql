-- +goose Up
-- people belong to no tenant; who may what refers to them by uid
CREATE TABLE people (
  uid      TEXT PRIMARY KEY,
  login    TEXT NOT NULL, -- name of the local account; empty: none
  name     TEXT NOT NULL, -- as shown
  email    TEXT NOT NULL, -- a mere attribute
  disabled INTEGER NOT NULL,
  created  INTEGER NOT NULL, -- Unix milliseconds, as all times here
  password TEXT NOT NULL, -- argon2id with its parameters; empty: none yet
  totp     BLOB NOT NULL,  -- sealed secret; empty: no second factor
  trial    BLOB NOT NULL,  -- sealed secret that no code has confirmed yet
  step     INTEGER NOT NULL  -- the newest step of time whose code was taken
);
CREATE UNIQUE INDEX people_login ON people (login) WHERE login <> '';

-- who a provider says it is: issuer and subject, never the e-mail
CREATE TABLE identities (
  issuer  TEXT NOT NULL,
  subject TEXT NOT NULL,
  person  TEXT NOT NULL,
  PRIMARY KEY (issuer, subject)
);
CREATE INDEX identities_person ON identities (person);

-- codes instead of a second factor that was lost; each goes when it is used
CREATE TABLE recovery_codes (
  person TEXT NOT NULL,
  hash   BLOB NOT NULL,
  PRIMARY KEY (person, hash)
);

-- failed tries, by account and by address
CREATE TABLE attempts (
  subject TEXT PRIMARY KEY,
  failed  INTEGER NOT NULL,
  last    INTEGER NOT NULL
);

CREATE TABLE sessions (
  id      TEXT PRIMARY KEY,
  hash    BLOB NOT NULL, -- SHA-256 of the secret part
  person  TEXT NOT NULL,
  how     TEXT NOT NULL, -- password, or the issuer
  groups  BLOB NOT NULL, -- JSON list of what the issuer said
  bearer  INTEGER NOT NULL, -- 1: sent as a token, 0: as a cookie
  created INTEGER NOT NULL,
  seen    INTEGER NOT NULL,
  ends    INTEGER NOT NULL,
  address TEXT NOT NULL,
  agent   TEXT NOT NULL,
  epoch   INTEGER NOT NULL -- of the core: none outlives a restore
);
CREATE INDEX sessions_person ON sessions (person);

-- tokens that work once: to make an admin, to set a password
CREATE TABLE once (
  id      TEXT PRIMARY KEY,
  hash    BLOB NOT NULL,
  purpose TEXT NOT NULL,
  person  TEXT NOT NULL,
  ends    INTEGER NOT NULL,
  epoch   INTEGER NOT NULL
);
