-- The end user that a key is bound to, by the customer's id. NULL: none.
ALTER TABLE keys ADD COLUMN end_user TEXT;
