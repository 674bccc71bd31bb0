// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a client asks for, and how it is told that it cannot have it.

use super::VERSION;
use crate::log::LogLevel;
use clap::ValueEnum;
use serde_json::{Map, Value, json};
use std::time::Duration;
use virtio_irq_proto::FunctionId;

/// The commands, in the order in which people are told of them.
pub(super) const COMMANDS: [&str; 6] = ["status", "watch", "attach", "detach", "drain", "log-level"];

/// Between two deltas of `watch`.
const INTERVALS: std::ops::RangeInclusive<u64> = 100..=60_000;
/// What the rates of `status` are measured over.
const WINDOWS: std::ops::RangeInclusive<u64> = 0..=10_000;

/// A request.
#[derive(Debug, PartialEq)]
pub(super) struct Request {
    /// Whatever the client wants to know its answer by.
    pub(super) id: Value,
    pub(super) command: Command,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Status { window: Duration },
    Watch { interval: Duration },
    Attach { device: String },
    Detach { function: Which },
    Drain { on: bool },
    LogLevel { level: Option<LogLevel> },
}

/// A function, by its id or by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Id(FunctionId),
    Name(String),
}

/// What went wrong. The names are for programs and do not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    /// The line is no JSON object.
    BadJson,
    /// The object is not a request of this version.
    BadVersion,
    /// There is no such command.
    UnknownCommand,
    /// The command's arguments are not what they should be.
    BadArgument,
    /// The line is longer than it may be.
    TooLong,
    /// The line does not end.
    TooSlow,
    /// There are as many clients as there may be.
    TooManyClients,
    /// What is named is not there.
    NotFound,
    /// It is there already.
    Exists,
    /// The function cannot be used.
    CannotOpen,
    /// The daemon could not do it.
    Internal,
}

impl Code {
    fn name(self) -> &'static str {
        match self {
            Self::BadJson => "bad-json",
            Self::BadVersion => "bad-version",
            Self::UnknownCommand => "unknown-command",
            Self::BadArgument => "bad-argument",
            Self::TooLong => "too-long",
            Self::TooSlow => "too-slow",
            Self::TooManyClients => "too-many-clients",
            Self::NotFound => "not-found",
            Self::Exists => "exists",
            Self::CannotOpen => "cannot-open",
            Self::Internal => "internal",
        }
    }
}

/// A refusal: what is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: Code,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// As a line of its own.
    pub(super) fn line(&self, id: &Value) -> String {
        let error = json!({ "code": self.code.name(), "message": self.message });
        let mut line = json!({ "v": VERSION, "id": id, "error": error });
        if id.is_null()
            && let Some(line) = line.as_object_mut()
        {
            line.remove("id");
        }
        format!("{line}\n")
    }
}

/// A request that cannot be served, with what is known of its id.
pub(super) type Refused = (Value, Refusal);

impl Request {
    /// Understands a line.
    pub(super) fn parse(line: &str) -> Result<Self, Refused> {
        let refuse = |code, message: String| Refusal { code, message };
        let mut object: Map<String, Value> = serde_json::from_str(line).map_err(|error| {
            (Value::Null, refuse(Code::BadJson, format!("the line is no JSON object: {error}")))
        })?;
        let id = match object.remove("id") {
            Some(id @ (Value::String(_) | Value::Number(_))) => id,
            None => Value::Null,
            Some(_) => {
                let message = "\"id\" is neither a string nor a number".to_owned();
                return Err((Value::Null, refuse(Code::BadArgument, message)));
            }
        };
        match Self::command(object) {
            Ok(command) => Ok(Self { id, command }),
            Err(refusal) => Err((id, refusal)),
        }
    }

    fn command(mut object: Map<String, Value>) -> Result<Command, Refusal> {
        match object.remove("v") {
            Some(version) if version == VERSION => {}
            version => {
                let given = version.map_or_else(|| "none".to_owned(), |version| version.to_string());
                return Err(Refusal::new(
                    Code::BadVersion,
                    format!(
                        "the daemon speaks version {VERSION} of the protocol, not {given}: send \"v\":{VERSION}"
                    ),
                ));
            }
        }
        let name = match object.remove("cmd") {
            Some(Value::String(name)) => name,
            _ => String::new(),
        };
        let mut arguments = Arguments(object);
        let command = match name.as_str() {
            "status" => Command::Status { window: arguments.duration("window_ms", 250, WINDOWS)? },
            "watch" => Command::Watch { interval: arguments.duration("interval_ms", 1000, INTERVALS)? },
            "attach" => Command::Attach {
                device: arguments.string("device")?.ok_or_else(|| {
                    Refusal::new(
                        Code::BadArgument,
                        "attach wants \"device\", as --device of the daemon has it",
                    )
                })?,
            },
            "detach" => Command::Detach { function: arguments.which()? },
            "drain" => Command::Drain { on: arguments.flag("on")?.unwrap_or(true) },
            "log-level" => Command::LogLevel { level: arguments.level()? },
            _ => {
                let commands = COMMANDS.join(", ");
                let message = format!("there is no command {name:?}: use one of {commands}");
                return Err(Refusal::new(Code::UnknownCommand, message));
            }
        };
        match arguments.0.keys().next() {
            None => Ok(command),
            Some(key) => Err(Refusal::new(Code::BadArgument, format!("{name} has no argument {key:?}"))),
        }
    }
}

struct Arguments(Map<String, Value>);

impl Arguments {
    fn string(&mut self, key: &str) -> Result<Option<String>, Refusal> {
        match self.0.remove(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Refusal::new(Code::BadArgument, format!("{key:?} is no string"))),
        }
    }

    fn flag(&mut self, key: &str) -> Result<Option<bool>, Refusal> {
        match self.0.remove(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(Refusal::new(Code::BadArgument, format!("{key:?} is neither true nor false"))),
        }
    }

    fn duration(
        &mut self,
        key: &str,
        default: u64,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Duration, Refusal> {
        let (least, most) = (*range.start(), *range.end());
        match self.0.remove(key).map_or(Some(default), |value| value.as_u64()) {
            Some(millis) if range.contains(&millis) => Ok(Duration::from_millis(millis)),
            _ => Err(Refusal::new(Code::BadArgument, format!("{key:?} is no number from {least} to {most}"))),
        }
    }

    fn which(&mut self) -> Result<Which, Refusal> {
        let id = |value: &Value| u16::try_from(value.as_u64()?).ok();
        match self.0.remove("function") {
            Some(Value::String(name)) => Ok(Which::Name(name)),
            Some(value) if id(&value).is_some() => Ok(Which::Id(FunctionId(id(&value).unwrap_or_default()))),
            _ => Err(Refusal::new(
                Code::BadArgument,
                "detach wants \"function\", the function's id or its name as `status` has them",
            )),
        }
    }

    fn level(&mut self) -> Result<Option<LogLevel>, Refusal> {
        let parse = |text: String| {
            LogLevel::from_str(&text, false).map_err(|_| {
                let message = format!("there is no log level {text:?}: use error, warn, info or debug");
                Refusal::new(Code::BadArgument, message)
            })
        };
        self.string("level")?.map(parse).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(line: &str) -> (Value, &'static str) {
        let (id, refusal) = Request::parse(line).unwrap_err();
        (id, refusal.code.name())
    }

    #[test]
    fn requests_are_understood() {
        let command = |line: &str| Request::parse(line).unwrap().command;
        let (second, quarter) = (Duration::from_secs(1), Duration::from_millis(250));
        assert_eq!(command(r#"{"v":1,"cmd":"status"}"#), Command::Status { window: quarter });
        assert_eq!(command(r#"{"v":1,"cmd":"watch"}"#), Command::Watch { interval: second });
        assert_eq!(
            command(r#"{"v":1,"cmd":"detach","function":7}"#),
            Command::Detach { function: Which::Id(FunctionId(7)) }
        );
        assert_eq!(command(r#"{"v":1,"cmd":"drain","on":false}"#), Command::Drain { on: false });
        assert_eq!(
            command(r#"{"v":1,"cmd":"log-level","level":"debug"}"#),
            Command::LogLevel { level: Some(LogLevel::Debug) }
        );
        assert_eq!(Request::parse(r#"{"v":1,"id":"x","cmd":"status"}"#).unwrap().id, json!("x"));
    }

    #[test]
    fn whatever_else_is_refused_with_a_code_and_the_id() {
        let null = Value::Null;
        for (line, expected) in [
            ("", (null.clone(), "bad-json")),
            ("[1]", (null.clone(), "bad-json")),
            (r#"{"v":1,"cmd":"status""#, (null.clone(), "bad-json")),
            (r#"{"v":1,"id":{},"cmd":"status"}"#, (null.clone(), "bad-argument")),
            (r#"{"id":5,"cmd":"status"}"#, (json!(5), "bad-version")),
            (r#"{"v":2,"id":5,"cmd":"status"}"#, (json!(5), "bad-version")),
            (r#"{"v":1,"id":5}"#, (json!(5), "unknown-command")),
            (r#"{"v":1,"id":5,"cmd":"reboot"}"#, (json!(5), "unknown-command")),
            (r#"{"v":1,"id":5,"cmd":"status","x":1}"#, (json!(5), "bad-argument")),
            (r#"{"v":1,"id":5,"cmd":"watch","interval_ms":99}"#, (json!(5), "bad-argument")),
            (r#"{"v":1,"id":5,"cmd":"watch","interval_ms":-1}"#, (json!(5), "bad-argument")),
            (r#"{"v":1,"id":5,"cmd":"attach"}"#, (json!(5), "bad-argument")),
            (r#"{"v":1,"id":5,"cmd":"detach","function":65536}"#, (json!(5), "bad-argument")),
            (r#"{"v":1,"id":5,"cmd":"drain","on":1}"#, (json!(5), "bad-argument")),
            (r#"{"v":1,"id":5,"cmd":"log-level","level":"loud"}"#, (json!(5), "bad-argument")),
        ] {
            assert_eq!(refusal(line), expected, "{line}");
        }
        let nested = format!(r#"{{"v":1,"cmd":{}"#, "[".repeat(10_000));
        assert_eq!(refusal(&nested), (null, "bad-json"));
    }
}
