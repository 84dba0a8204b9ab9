CREATE TABLE person (
    id            bigint PRIMARY KEY,
    name          text NOT NULL,
    email_address text NOT NULL,
    credit_card   text NOT NULL,
    city          text NOT NULL,
    state         text NOT NULL,
    date_time     timestamp NOT NULL,
    extra         text
);
CREATE TABLE auction (
    id          bigint PRIMARY KEY,
    item_name   text NOT NULL,
    description text NOT NULL,
    initial_bid bigint NOT NULL,
    reserve     bigint NOT NULL,
    date_time   timestamp NOT NULL,
    expires     timestamp NOT NULL,
    seller      bigint NOT NULL,
    category    bigint NOT NULL,
    extra       text
);
CREATE TABLE bid (
    auction   bigint NOT NULL,
    bidder    bigint NOT NULL,
    price     bigint NOT NULL,
    channel   text NOT NULL,
    url       text NOT NULL,
    date_time timestamp NOT NULL,
    extra     text
);
-- The bounded side input of query 13.
CREATE TABLE side_input (key bigint PRIMARY KEY, value text NOT NULL);
INSERT INTO side_input SELECT number, 'value ' || number FROM generate_series(0, 99) AS number;
CREATE INDEX ON auction (seller);
CREATE INDEX ON auction (category);
CREATE INDEX ON bid (auction);
CREATE INDEX ON bid (bidder, auction);
CREATE INDEX ON bid (channel);
CREATE INDEX ON bid (date_time);
