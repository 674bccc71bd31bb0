// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One client of the control socket.

use super::lines::{LineError, Lines};
use super::operator::Operator;
use super::request::{COMMANDS, Code, Command, Refusal, Request};
use super::sampler::Sampler;
use super::status::Sample;
use super::{CLIENTS, LINE_BYTES, VERSION, WRITE_TIME, metrics};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep, timeout};
use tracing::{debug, info};

/// The connection is of no more use.
struct Gone;

/// Lines of the head of an HTTP request that are passed over.
const HTTP_LINES: usize = 64;

struct Client<'a> {
    lines: Lines<OwnedReadHalf>,
    to: OwnedWriteHalf,
    sampler: &'a Arc<Sampler>,
    operator: &'a Operator,
    greeted: bool,
    watch: Option<Watch>,
}

/// A client that wants to be told.
struct Watch {
    id: Value,
    ticks: Interval,
    /// What the client knows.
    seen: Arc<Sample>,
}

/// Serves a client until it leaves, breaks the rules, or does not take what it asked for.
pub(super) async fn serve_client(stream: UnixStream, sampler: &Arc<Sampler>, operator: &Operator) {
    let (from, to) = stream.into_split();
    let mut client = Client { lines: Lines::new(from), to, sampler, operator, greeted: false, watch: None };
    while client.step().await.is_ok() {}
}

impl Client<'_> {
    async fn step(&mut self) -> Result<(), Gone> {
        tokio::select! {
            line = self.lines.next() => self.take(line).await,
            () = next_tick(&mut self.watch) => self.tell().await,
        }
    }

    async fn take(&mut self, line: Result<Option<String>, LineError>) -> Result<(), Gone> {
        let line = match line {
            Ok(Some(line)) => line,
            Ok(None) => return Err(Gone),
            Err(error) => return self.part(line_refusal(&error).ok_or(Gone)?).await,
        };
        if !self.greeted {
            if let Some(path) = http_path(&line) {
                return self.answer_http(&path).await;
            }
            self.greeted = true;
            self.send(&hello()).await?;
        }
        if line.trim().is_empty() {
            return Ok(());
        }
        match Request::parse(&line) {
            Ok(Request { id, command }) => self.serve(id, command).await,
            // Whoever does not speak JSON does not speak this protocol.
            Err((id, refusal)) if refusal.code == Code::BadJson => {
                self.send(&refusal.line(&id)).await?;
                Err(Gone)
            }
            Err((id, refusal)) => self.send(&refusal.line(&id)).await,
        }
    }

    async fn serve(&mut self, id: Value, command: Command) -> Result<(), Gone> {
        let result = match command {
            Command::Status { window } => return self.status(&id, window).await,
            Command::Watch { interval } => return self.watch(id, interval).await,
            Command::Attach { device } => self.operator.attach(&device).await,
            Command::Detach { function } => self.operator.detach(function).await,
            Command::Drain { on } => Ok(self.operator.drain(on)),
            Command::LogLevel { level } => self.log_level(level),
        };
        match result {
            Ok(result) => self.send(&answer(&id, "ok", &result)).await,
            Err(refusal) => self.send(&refusal.line(&id)).await,
        }
    }

    fn log_level(&self, level: Option<crate::log::LogLevel>) -> Result<Value, Refusal> {
        let log = self.sampler.log();
        if let Some(level) = level {
            log.set_level(level).map_err(|error| Refusal::new(Code::Internal, error.to_string()))?;
            info!("the log level is {} now", level.name());
        }
        Ok(json!({ "level": log.level().name() }))
    }

    async fn status(&mut self, id: &Value, window: Duration) -> Result<(), Gone> {
        let mut sample = self.sampler.sample().await;
        let mut rates = Value::Null;
        if !window.is_zero() {
            sleep(window).await;
            let later = self.sampler.sample().await;
            rates = later.rates(&sample);
            sample = later;
        }
        let mut result = json!({ "status": sample.document });
        if let Some(result) = result.as_object_mut().filter(|_| !rates.is_null()) {
            result.insert("rates".to_owned(), rates);
        }
        self.send(&answer(id, "ok", &result)).await
    }

    /// Tells everything now, and from then on what changed. A second `watch` takes the place of the first.
    async fn watch(&mut self, id: Value, interval: Duration) -> Result<(), Gone> {
        let seen = self.sampler.sample().await;
        let millis = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        self.send(&answer(&id, "ok", &json!({ "interval_ms": millis }))).await?;
        let status = json!({ "v": VERSION, "id": id, "event": "status", "status": seen.document });
        self.send(&format!("{status}\n")).await?;
        // Clients with the same interval are told at the same moments, and so of the same sample.
        let since = self.sampler.started().elapsed();
        let nanos = interval.as_nanos().max(1);
        let into = Duration::from_nanos(u64::try_from(since.as_nanos() % nanos).unwrap_or(0));
        let mut ticks = interval_at(Instant::now() + (interval - into), interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        self.watch = Some(Watch { id, ticks, seen });
        Ok(())
    }

    async fn tell(&mut self) -> Result<(), Gone> {
        let now = self.sampler.recent_sample().await;
        let Some(watch) = &mut self.watch else { return Ok(()) };
        if Arc::ptr_eq(&watch.seen, &now) {
            return Ok(());
        }
        let delta = self.sampler.delta(&watch.seen, &now).await;
        watch.seen = now;
        let line = format!("{{\"v\":{VERSION},\"id\":{},\"event\":\"delta\",{delta}}}\n", watch.id);
        self.send(&line).await
    }

    async fn answer_http(&mut self, path: &str) -> Result<(), Gone> {
        for _ in 0..HTTP_LINES {
            match self.lines.next().await {
                Ok(Some(line)) if !line.is_empty() => {}
                Ok(_) => break,
                Err(_) => return Err(Gone),
            }
        }
        let (status, kind, body) = match path {
            "/metrics" => match metrics::page(self.sampler.sample().await) {
                Ok(page) => ("200 OK", metrics::CONTENT_TYPE, page),
                Err(_) => {
                    ("500 Internal Server Error", "text/plain", "the page cannot be written\n".to_owned())
                }
            },
            _ => ("404 Not Found", "text/plain", "there is /metrics here, and nothing else\n".to_owned()),
        };
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        self.send(&(head + &body)).await?;
        Err(Gone)
    }

    /// Says why, and leaves.
    async fn part(&mut self, refusal: Refusal) -> Result<(), Gone> {
        self.send(&refusal.line(&Value::Null)).await?;
        Err(Gone)
    }

    async fn send(&mut self, text: &str) -> Result<(), Gone> {
        match timeout(WRITE_TIME, self.to.write_all(text.as_bytes())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Gone),
            Err(_) => {
                debug!("a control client does not read what it asked for, and is disconnected");
                Err(Gone)
            }
        }
    }
}

async fn next_tick(watch: &mut Option<Watch>) {
    match watch {
        Some(watch) => drop(watch.ticks.tick().await),
        None => std::future::pending().await,
    }
}

fn answer(id: &Value, key: &str, result: &Value) -> String {
    if id.is_null() {
        format!("{{\"v\":{VERSION},\"{key}\":{result}}}\n")
    } else {
        format!("{{\"v\":{VERSION},\"id\":{id},\"{key}\":{result}}}\n")
    }
}

fn hello() -> String {
    let hello = json!({
        "daemon": env!("CARGO_PKG_NAME"),
        "version": env!("CARGO_PKG_VERSION"),
        "commands": COMMANDS,
        "limits": { "clients": CLIENTS, "line_bytes": LINE_BYTES },
    });
    format!("{}\n", json!({ "v": VERSION, "hello": hello }))
}

fn line_refusal(error: &LineError) -> Option<Refusal> {
    match error {
        LineError::TooLong => {
            Some(Refusal::new(Code::TooLong, format!("the line has more than {LINE_BYTES} bytes")))
        }
        LineError::NotText => Some(Refusal::new(Code::BadJson, "the line is not UTF-8")),
        LineError::TooSlow => Some(Refusal::new(Code::TooSlow, "the line does not end: send whole lines")),
        LineError::Broken => None,
    }
}

/// The path of an HTTP request that reads something.
fn http_path(line: &str) -> Option<String> {
    let rest = line.strip_prefix("GET ")?;
    let (path, version) = rest.split_once(' ')?;
    version.starts_with("HTTP/1.").then(|| path.split('?').next().unwrap_or(path).to_owned())
}
