//! Reads expressions, with PostgreSQL's precedences.

use crate::model::{
    expression::{Call, Expression, Over},
    lexer::{Token, tokens},
    value::{Numeric, Value},
};

/// Reads a whole text as one expression.
pub fn expression(sql: &str) -> Expression {
    let mut parser = Parser::new(sql);
    let expression = parser.expression();
    parser.finish();
    expression
}

/// A cursor over tokens.
pub(crate) struct Parser {
    tokens: Vec<Token>,
    next: usize,
}

impl Parser {
    pub(crate) fn new(sql: &str) -> Self {
        Self { tokens: tokens(sql).into_iter().map(|(_, token)| token).collect(), next: 0 }
    }

    pub(crate) fn finish(&self) {
        assert!(self.next == self.tokens.len(), "trailing {:?}", &self.tokens[self.next..]);
    }

    pub(crate) fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next)
    }

    pub(crate) fn take(&mut self) -> Token {
        self.next += 1;
        self.tokens[self.next - 1].clone()
    }

    pub(crate) fn accept(&mut self, symbol: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Symbol(it)) if *it == symbol);
        self.next += usize::from(found);
        found
    }

    pub(crate) fn expect(&mut self, symbol: &str) {
        assert!(self.accept(symbol), "{symbol} expected at {:?}", &self.tokens[self.next..]);
    }

    /// Accepts keywords in a row.
    pub(crate) fn accept_words(&mut self, words: &[&str]) -> bool {
        let found = words.iter().enumerate().all(|(i, word)| {
            matches!(self.tokens.get(self.next + i), Some(Token::Word(it)) if it == word)
        });
        self.next += if found { words.len() } else { 0 };
        found
    }

    pub(crate) fn expect_words(&mut self, words: &[&str]) {
        assert!(self.accept_words(words), "{words:?} expected at {:?}", &self.tokens[self.next..]);
    }

    /// Accepts `alias.*`.
    pub(crate) fn accept_all_of(&mut self) -> Option<String> {
        match self.tokens.get(self.next..self.next + 3)? {
            [Token::Word(alias), Token::Symbol("."), Token::Symbol("*")] => {
                let alias = alias.clone();
                self.next += 3;
                Some(alias)
            }
            _ => None,
        }
    }

    pub(crate) fn comma_separated<T>(&mut self, mut item: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let mut items = vec![item(self)];
        while self.accept(",") {
            items.push(item(self));
        }
        items
    }

    /// OR binds least.
    pub(crate) fn expression(&mut self) -> Expression {
        let mut left = self.conjunction();
        while self.accept_words(&["OR"]) {
            left = binary("OR", left, self.conjunction());
        }
        left
    }

    fn conjunction(&mut self) -> Expression {
        let mut left = self.negation();
        while self.accept_words(&["AND"]) {
            left = binary("AND", left, self.negation());
        }
        left
    }

    fn negation(&mut self) -> Expression {
        if self.accept_words(&["NOT"]) {
            return Expression::Not(Box::new(self.negation()));
        }
        let mut operand = self.comparison();
        while self.accept_words(&["IS"]) {
            let is_negated = self.accept_words(&["NOT"]);
            self.expect_words(&["NULL"]);
            operand = Expression::IsNull(Box::new(operand));
            if is_negated {
                operand = Expression::Not(Box::new(operand));
            }
        }
        operand
    }

    fn comparison(&mut self) -> Expression {
        let left = self.membership();
        for operator in ["=", "<>", "<=", ">=", "<", ">"] {
            if self.accept(operator) {
                return binary(operator, left, self.membership());
            }
        }
        left
    }

    fn membership(&mut self) -> Expression {
        let left = self.other_operator();
        if !self.accept_words(&["IN"]) {
            return left;
        }
        self.expect("(");
        let list = self.comma_separated(Self::expression);
        self.expect(")");
        Expression::In(Box::new(left), list)
    }

    fn other_operator(&mut self) -> Expression {
        let mut left = self.additive();
        loop {
            if self.accept("*=") {
                left = binary("*=", left, self.additive());
            } else if self.accept_words(&["OPERATOR"]) {
                self.expect("(");
                self.expect_words(&["pg_catalog"]);
                self.expect(".");
                let Token::Symbol(operator) = self.take() else { panic!("operator expected") };
                self.expect(")");
                left = binary(operator, left, self.additive());
            } else {
                return left;
            }
        }
    }

    fn additive(&mut self) -> Expression {
        let mut left = self.multiplicative();
        loop {
            if self.accept("+") {
                left = binary("+", left, self.multiplicative());
            } else if self.accept("-") {
                left = binary("-", left, self.multiplicative());
            } else {
                return left;
            }
        }
    }

    fn multiplicative(&mut self) -> Expression {
        let mut left = self.signed();
        loop {
            if self.accept("*") {
                left = binary("*", left, self.signed());
            } else if self.accept("/") {
                left = binary("/", left, self.signed());
            } else {
                return left;
            }
        }
    }

    fn signed(&mut self) -> Expression {
        if self.accept("-") {
            return Expression::Negated(Box::new(self.signed()));
        }
        let mut operand = self.primary();
        while self.accept("::") {
            operand = Expression::Cast(Box::new(operand), self.type_name());
        }
        operand
    }

    fn type_name(&mut self) -> String {
        let Token::Word(mut name) = self.take() else { panic!("type expected") };
        if name == "pg_catalog" {
            self.expect(".");
            return self.type_name();
        }
        if self.accept("(") {
            while !self.accept(")") {
                self.take();
            }
        }
        while self.accept("[") {
            self.expect("]");
            name += "[]";
        }
        name
    }

    fn primary(&mut self) -> Expression {
        match self.take() {
            Token::Symbol("(") if matches!(self.peek(), Some(Token::Word(it)) if it == "SELECT") => {
                let query = self.query();
                self.expect(")");
                Expression::Scalar(Box::new(query))
            }
            Token::Symbol("(") => {
                let inner = self.expression();
                self.expect(")");
                inner
            }
            Token::Hole(position) => Expression::Hole(position),
            Token::Text(text) => Expression::Literal(Value::Text(text)),
            Token::Number(text) => Expression::Literal(match text.parse() {
                Ok(integer) => Value::Int(integer),
                Err(_) => Value::Numeric(Numeric::parse(&text).expect("a number")),
            }),
            Token::Quoted(name) => self.column_or_call(name, true),
            Token::Word(word) => match word.as_str() {
                "NULL" => Expression::Literal(Value::Null),
                "true" => Expression::Literal(Value::Bool(true)),
                "false" => Expression::Literal(Value::Bool(false)),
                "CASE" => self.case(),
                "EXISTS" => {
                    self.expect("(");
                    let query = self.query();
                    self.expect(")");
                    Expression::Exists(Box::new(query))
                }
                "ROW" => {
                    self.expect("(");
                    let fields = self.comma_separated(Self::expression);
                    self.expect(")");
                    Expression::Record(fields)
                }
                _ => self.column_or_call(word, false),
            },
            other => panic!("an expression cannot start with {other:?}"),
        }
    }

    fn case(&mut self) -> Expression {
        let has_operand = !matches!(self.peek(), Some(Token::Word(it)) if it == "WHEN");
        let operand = has_operand.then(|| Box::new(self.expression()));
        let mut arms = Vec::new();
        while self.accept_words(&["WHEN"]) {
            let when = self.expression();
            self.expect_words(&["THEN"]);
            arms.push((when, self.expression()));
        }
        let otherwise = if self.accept_words(&["ELSE"]) {
            self.expression()
        } else {
            Expression::Literal(Value::Null)
        };
        self.expect_words(&["END"]);
        Expression::Case { operand, arms, otherwise: Box::new(otherwise) }
    }

    /// A name, possibly qualified, or a call of the function of that name.
    fn column_or_call(&mut self, first: String, is_quoted: bool) -> Expression {
        let (qualifier, name) = if self.accept(".") {
            match self.take() {
                Token::Word(name) | Token::Quoted(name) => (Some(first), name),
                other => panic!("a name expected after {first}, not {other:?}"),
            }
        } else {
            (None, first)
        };
        if is_quoted || !self.accept("(") {
            return Expression::Column(qualifier, name);
        }
        let name = match qualifier {
            Some(schema) if schema != "pg_catalog" => format!("{schema}.{name}"),
            _ => name,
        };
        let is_distinct = self.accept_words(&["DISTINCT"]);
        let arguments = if self.accept("*") || matches!(self.peek(), Some(Token::Symbol(")"))) {
            Vec::new()
        } else {
            self.comma_separated(Self::expression)
        };
        self.expect(")");
        let filter = self.accept_words(&["FILTER"]).then(|| {
            self.expect("(");
            self.expect_words(&["WHERE"]);
            let condition = self.expression();
            self.expect(")");
            Box::new(condition)
        });
        let call = Call { name, arguments, is_distinct, filter };
        if self.accept_words(&["OVER"]) { self.over(call) } else { Expression::Call(call) }
    }

    fn over(&mut self, call: Call) -> Expression {
        self.expect("(");
        let partition = if self.accept_words(&["PARTITION", "BY"]) {
            self.comma_separated(Self::expression)
        } else {
            Vec::new()
        };
        let order = if self.accept_words(&["ORDER", "BY"]) {
            self.comma_separated(|it| (it.expression(), it.accept_words(&["DESC"])))
        } else {
            Vec::new()
        };
        self.expect(")");
        Expression::Over(Box::new(Over { call, partition, order }))
    }
}

fn binary(operator: &'static str, left: Expression, right: Expression) -> Expression {
    Expression::Binary(operator, Box::new(left), Box::new(right))
}

#[cfg(test)]
mod tests {
    use super::expression;
    use crate::model::value::Value;

    fn value(sql: &str) -> Value {
        expression(sql).evaluate_scalar(&vec![Value::Int(2), Value::Null])
    }

    #[test]
    fn precedences_are_those_of_postgresql() {
        assert_eq!(value("1 + 2 * 3"), Value::Int(7));
        assert_eq!(value("- #0 + 1"), Value::Int(-1));
        assert_eq!(value("-1::int8 * 2"), Value::Int(-2));
        assert_eq!(value("1 = 2 IS NULL"), Value::Bool(false));
        assert_eq!(value("false AND false OR true"), Value::Bool(true));
        assert_eq!(value("NOT #0 = 1"), Value::Bool(true));
        assert_eq!(value("1 OPERATOR(pg_catalog.=) 1 + 0"), Value::Bool(true));
    }

    #[test]
    fn logic_has_three_values() {
        assert_eq!(value("#1 = #1"), Value::Null);
        assert_eq!(value("NOT #1 = 1"), Value::Null);
        assert_eq!(value("#1 = 1 OR true"), Value::Bool(true));
        assert_eq!(value("#1 IN (1, 2)"), Value::Null);
        assert_eq!(value("#0 IN (2, #1)"), Value::Bool(true));
        assert_eq!(value("#0 IN (3, #1)"), Value::Null);
        assert_eq!(value("CASE WHEN #1 = 1 THEN 1 ELSE 2 END"), Value::Int(2));
        assert_eq!(value("LEAST(#0, #1)"), Value::Int(2));
        assert_eq!(value("num_nonnulls(#1) = 1"), Value::Bool(false));
        assert_eq!(value("num_nonnulls(ROW(#1, #1)) = 1"), Value::Bool(true));
    }
}
