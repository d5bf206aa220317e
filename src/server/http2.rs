//! A connection in HTTP/2 below hyper, frame by frame in both directions: which streams are open, and when the gateway says
//! something of its own. No frame is changed or held back here.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;

use super::activity::ConnectionActivity;
use super::frames::{FrameEvent, Frames, begins_with_data_of};
use super::own_frames::{OwnFrame, OwnFrames};
use super::shutdown::ListenerShutdown;
use super::uploads::Uploads;

/// How many open streams are tracked. It is more than may be open, because refused streams count until they are reset.
const MAX_KNOWN: usize = 256;

/// What is known of a connection.
pub(super) struct Http2 {
    /// What the client sends.
    pub(super) frames: Frames,
    /// What hyper has written.
    written: Frames,
    own: OwnFrames,
    /// Streams whose response has not been written to its end.
    open: Vec<u32>,
    uploads: Arc<Uploads>,
    shutdown: ListenerShutdown,
    has_said_goaway: bool,
    /// How large the client allows the table for response fields to be: what it said last, until that is acknowledged.
    announced: Option<u32>,
    table_size: u32,
}

/// Until the client says otherwise (RFC 9113 §6.5.2). hyper uses no larger one.
const TABLE_SIZE: u32 = 4_096;

impl Http2 {
    pub(super) fn new(shutdown: ListenerShutdown) -> Self {
        Self {
            frames: Frames::of_client(),
            written: Frames::of_server(),
            own: OwnFrames::default(),
            open: Vec::new(),
            uploads: Arc::default(),
            shutdown,
            has_said_goaway: false,
            announced: None,
            table_size: TABLE_SIZE,
        }
    }

    pub(super) fn uploads(&self) -> &Arc<Uploads> {
        &self.uploads
    }

    /// Takes note of what was read. If the head of a request is in it whose body follows, says how much is read up to its end:
    /// the rest is to be read when that request was accepted.
    pub(super) fn reads(
        &mut self,
        bytes: &[u8],
        activity: &ConnectionActivity,
        context: &Context<'_>,
    ) -> Option<usize> {
        let mut left = bytes;
        while let Some(event) = self.frames.next(&mut left) {
            match event {
                FrameEvent::Opened { stream, has_body } => {
                    if self.open.len() < MAX_KNOWN {
                        self.open.push(stream);
                        activity.has_open_streams(true);
                    }
                    if has_body {
                        self.uploads.begins(stream, begins_with_data_of(stream, left), context.waker());
                        return Some(bytes.len() - left.len());
                    }
                }
                FrameEvent::Trailers { stream, fields } => self.uploads.trailers(stream, fields),
                FrameEvent::Closed { stream } => self.closes(stream, activity),
                FrameEvent::Settings { table_size } => self.announced = table_size.or(self.announced),
                FrameEvent::Acknowledged => {}
            }
        }
        None
    }

    /// Takes note of what hyper has written, which is this much of these parts.
    pub(super) fn wrote<'a>(
        &mut self,
        parts: impl IntoIterator<Item = &'a [u8]>,
        mut written: usize,
        activity: &ConnectionActivity,
    ) {
        for part in parts {
            let mut here = &part[..part.len().min(written)];
            written -= here.len();
            while let Some(event) = self.written.next(&mut here) {
                match event {
                    FrameEvent::Closed { stream } => self.closes(stream, activity),
                    FrameEvent::Acknowledged => self.table_size = self.announced.take().unwrap_or(self.table_size),
                    FrameEvent::Opened { .. } | FrameEvent::Trailers { .. } | FrameEvent::Settings { .. } => {}
                }
            }
        }
    }

    fn closes(&mut self, stream: u32, activity: &ConnectionActivity) {
        if let Some(index) = self.open.iter().position(|&open| open == stream) {
            self.open.swap_remove(index);
            activity.has_open_streams(!self.open.is_empty());
        }
    }

    /// Says what there is to say here. Nothing else may be written before this is ready.
    pub(super) fn poll_own<IO: AsyncWrite + Unpin>(
        &mut self,
        io: &mut IO,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { frames, written, own, open, uploads, shutdown, has_said_goaway, table_size, .. } = self;
        own.poll(io, context, || {
            if !written.is_between() {
                return None;
            }
            // Some clients close as soon as they read a GOAWAY, whatever they wait for.
            let is_quiet = open.is_empty() && !frames.is_unfinished();
            if is_quiet && !*has_said_goaway && !written.is_going() && shutdown.is_last_round() {
                *has_said_goaway = true;
                return Some(OwnFrame::GoAway);
            }
            let reduced = Some(*table_size).filter(|&size| size < TABLE_SIZE);
            uploads.take_due().map(|stream| OwnFrame::Continue { stream, reduced })
        })
    }
}
