//! Cuts SQL text into tokens.

/// A token of SQL text or of a scalar's printed form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// A keyword or an unquoted name.
    Word(String),
    /// A quoted name, without its quotes.
    Quoted(String),
    /// A number.
    Number(String),
    /// A string literal, without its quotes.
    Text(String),
    /// `#3`: a column of a scalar's input.
    Hole(usize),
    /// Punctuation or an operator.
    Symbol(&'static str),
}

const SYMBOLS: [&str; 18] =
    ["::", "<>", "<=", ">=", "*=", "(", ")", ",", ".", "*", "+", "-", "/", "=", "<", ">", "[", "]"];

/// The tokens of `sql`, each with the place of its first byte. Panics on what it does not know.
pub(crate) fn tokens(sql: &str) -> Vec<(usize, Token)> {
    let mut tokens = Vec::new();
    let mut rest = sql;
    loop {
        rest = rest.trim_start();
        let Some(first) = rest.chars().next() else { return tokens };
        let start = sql.len() - rest.len();
        let (token, length) = match first {
            '"' | '\'' => quoted(rest, first),
            '#' => {
                let digits = 1 + span(&rest[1..], |it| it.is_ascii_digit());
                (Token::Hole(rest[1..digits].parse().expect("digits after #")), digits)
            }
            '0'..='9' => {
                let length = span(rest, |it| it.is_ascii_digit() || it == '.');
                (Token::Number(rest[..length].to_owned()), length)
            }
            it if it.is_alphabetic() || it == '_' => {
                let length = span(rest, |it| it.is_alphanumeric() || it == '_');
                (Token::Word(rest[..length].to_owned()), length)
            }
            _ => {
                let symbol = SYMBOLS.iter().find(|it| rest.starts_with(**it));
                let symbol = symbol.unwrap_or_else(|| panic!("cannot read {rest}"));
                (Token::Symbol(symbol), symbol.len())
            }
        };
        tokens.push((start, token));
        rest = &rest[length..];
    }
}

fn span(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.find(|it| !belongs(it)).unwrap_or(text.len())
}

fn quoted(text: &str, quote: char) -> (Token, usize) {
    let mut content = String::new();
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((place, it)) = chars.next() {
        if it != quote {
            content.push(it);
        } else if chars.peek().is_some_and(|(_, next)| *next == quote) {
            content.push(quote);
            chars.next();
        } else {
            let token = if quote == '"' { Token::Quoted(content) } else { Token::Text(content) };
            return (token, place + 1);
        }
    }
    panic!("no closing {quote} in {text}")
}
