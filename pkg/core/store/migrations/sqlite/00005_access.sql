-- +goose Up
-- the uid of the ServiceAccount whose token it is. Until it has one, a token of before says by
-- its role which; since, the role is empty.
ALTER TABLE tokens ADD COLUMN account TEXT NOT NULL DEFAULT '';
