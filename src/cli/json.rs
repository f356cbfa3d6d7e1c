//! JSON with the keys in the documented order, which `serde_json` would sort.

use std::ffi::OsString;
use std::fmt::Write as _;

/// Variables as one JSON object, in their order.
pub(crate) fn object(variables: &[(String, OsString)]) -> String {
    let mut text = String::from("{");
    for (index, (name, value)) in variables.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let value = string(&value.to_string_lossy());
        let _ = write!(text, "{comma}{}:{value}", string(name));
    }
    text.push('}');
    text
}

/// `text` as a JSON string.
pub(crate) fn string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
