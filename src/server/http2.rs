//! Follows an HTTP/2 connection below hyper, frame by frame in both directions. It tracks open streams and decides when
//! the gateway sends a frame of its own. No frame is changed or delayed here.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;

use super::activity::ConnectionActivity;
use super::frames::{FrameEvent, Frames, begins_with_data_of};
use super::own_frames::{OwnFrame, OwnFrames};
use super::shutdown::ListenerShutdown;
use super::uploads::Uploads;

/// The maximum number of open streams that are tracked. It is higher than the limit of streams, because refused streams
/// count until they are reset.
const MAX_TRACKED_STREAMS: usize = 256;

pub(super) struct Http2 {
    /// Frames from the client.
    pub(super) client_frames: Frames,
    /// Frames from hyper.
    server_frames: Frames,
    own_frames: OwnFrames,
    /// Streams whose response has not been written completely.
    open_streams: Vec<u32>,
    uploads: Arc<Uploads>,
    shutdown: ListenerShutdown,
    has_sent_goaway: bool,
    /// The client's last SETTINGS_HEADER_TABLE_SIZE, until hyper acknowledges it; then it becomes `table_size`.
    announced_table_size: Option<u32>,
    table_size: u32,
}

/// The initial SETTINGS_HEADER_TABLE_SIZE (RFC 9113 §6.5.2). hyper uses no larger table.
const DEFAULT_TABLE_SIZE: u32 = 4_096;

impl Http2 {
    pub(super) fn new(shutdown: ListenerShutdown) -> Self {
        Self {
            client_frames: Frames::of_client(),
            server_frames: Frames::of_server(),
            own_frames: OwnFrames::default(),
            open_streams: Vec::new(),
            uploads: Arc::default(),
            shutdown,
            has_sent_goaway: false,
            announced_table_size: None,
            table_size: DEFAULT_TABLE_SIZE,
        }
    }

    pub(super) fn uploads(&self) -> &Arc<Uploads> {
        &self.uploads
    }

    /// Follows bytes that were read. If they contain the head of a request with a body, returns the number of bytes up
    /// to the end of that head. The rest must not be passed to hyper before that request was accepted.
    pub(super) fn record_read(
        &mut self,
        bytes: &[u8],
        activity: &ConnectionActivity,
        context: &Context<'_>,
    ) -> Option<usize> {
        let mut left = bytes;
        while let Some(event) = self.client_frames.next(&mut left) {
            match event {
                FrameEvent::Opened { stream, has_body } => {
                    if self.open_streams.len() < MAX_TRACKED_STREAMS {
                        self.open_streams.push(stream);
                        activity.set_has_open_streams(true);
                    }
                    if has_body {
                        self.uploads.head_read(stream, begins_with_data_of(stream, left), context.waker());
                        return Some(bytes.len() - left.len());
                    }
                }
                FrameEvent::Trailers { stream, fields } => self.uploads.trailers_read(stream, fields),
                FrameEvent::Closed { stream } => self.stream_closed(stream, activity),
                FrameEvent::Settings { table_size } => {
                    self.announced_table_size = table_size.or(self.announced_table_size)
                }
                FrameEvent::Acknowledged => {}
            }
        }
        None
    }

    /// Follows what hyper has written: the first `written` bytes of these parts.
    pub(super) fn record_written<'a>(
        &mut self,
        parts: impl IntoIterator<Item = &'a [u8]>,
        mut written: usize,
        activity: &ConnectionActivity,
    ) {
        for part in parts {
            let mut here = &part[..part.len().min(written)];
            written -= here.len();
            while let Some(event) = self.server_frames.next(&mut here) {
                match event {
                    FrameEvent::Closed { stream } => self.stream_closed(stream, activity),
                    FrameEvent::Acknowledged => {
                        self.table_size = self.announced_table_size.take().unwrap_or(self.table_size)
                    }
                    FrameEvent::Opened { .. } | FrameEvent::Trailers { .. } | FrameEvent::Settings { .. } => {}
                }
            }
        }
    }

    fn stream_closed(&mut self, stream: u32, activity: &ConnectionActivity) {
        if let Some(index) = self.open_streams.iter().position(|&open| open == stream) {
            self.open_streams.swap_remove(index);
            activity.set_has_open_streams(!self.open_streams.is_empty());
        }
    }

    /// Writes the gateway's own frames, if there are any. Nothing else may be written before this is ready.
    pub(super) fn poll_own_frames<IO: AsyncWrite + Unpin>(
        &mut self,
        io: &mut IO,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let Self {
            client_frames,
            server_frames,
            own_frames,
            open_streams,
            uploads,
            shutdown,
            has_sent_goaway,
            table_size,
            ..
        } = self;
        own_frames.poll(io, context, || {
            if !server_frames.is_at_boundary() {
                return None;
            }
            // Some clients close as soon as they read a GOAWAY, even if they still wait for responses.
            let is_between_requests = open_streams.is_empty() && !client_frames.is_unfinished();
            if is_between_requests && !*has_sent_goaway && !server_frames.has_goaway() && shutdown.is_announcing() {
                *has_sent_goaway = true;
                return Some(OwnFrame::GoAway);
            }
            let reduced = Some(*table_size).filter(|&size| size < DEFAULT_TABLE_SIZE);
            uploads.take_due().map(|stream| OwnFrame::Continue { stream, reduced })
        })
    }
}
