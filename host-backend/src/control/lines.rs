// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Lines of a client that may send anything, or nothing.

use super::LINE_BYTES;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};
use tokio_util::bytes::BytesMut;
use tokio_util::codec::{Decoder, LinesCodec, LinesCodecError};

/// How long a line may take from its first byte to its last.
const LINE_TIME: Duration = Duration::from_secs(10);

/// Why there is no line, nor will be another one.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LineError {
    /// More than [`LINE_BYTES`] without an end.
    TooLong,
    /// It is not UTF-8.
    NotText,
    /// It does not end.
    TooSlow,
    /// The connection broke.
    Broken,
}

/// Reads lines, none longer than [`LINE_BYTES`].
#[derive(Debug)]
pub(super) struct Lines<R> {
    from: R,
    codec: LinesCodec,
    buffer: BytesMut,
    /// When the line that is not whole yet must be.
    deadline: Option<Instant>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(super) fn new(from: R) -> Self {
        let codec = LinesCodec::new_with_max_length(LINE_BYTES);
        Self { from, codec, buffer: BytesMut::new(), deadline: None }
    }

    /// The next line, or nothing at the end. What came before the end counts as a line. To drop the future and to call
    /// it again loses nothing.
    pub(super) async fn next(&mut self) -> Result<Option<String>, LineError> {
        loop {
            if let Some(line) = self.codec.decode(&mut self.buffer).map_err(line_error)? {
                self.deadline = None;
                return Ok(Some(line));
            }
            if !self.buffer.is_empty() {
                self.deadline.get_or_insert_with(|| Instant::now() + LINE_TIME);
            }
            self.buffer.reserve(4096);
            let read = self.from.read_buf(&mut self.buffer);
            let count = match self.deadline {
                Some(deadline) => timeout_at(deadline, read).await.map_err(|_| LineError::TooSlow)?,
                None => read.await,
            };
            if count.map_err(|_| LineError::Broken)? == 0 {
                return self.codec.decode_eof(&mut self.buffer).map_err(line_error);
            }
        }
    }
}

fn line_error(error: LinesCodecError) -> LineError {
    match error {
        LinesCodecError::MaxLineLengthExceeded => LineError::TooLong,
        LinesCodecError::Io(_) => LineError::NotText,
    }
}
