CREATE FUNCTION pgstream.explain_plan(query text) RETURNS text
    LANGUAGE c STRICT STABLE
    AS 'MODULE_PATHNAME', 'explain_plan_wrapper';
COMMENT ON FUNCTION pgstream.explain_plan(text) IS
    'The operators that a query is lowered to; creates nothing';
