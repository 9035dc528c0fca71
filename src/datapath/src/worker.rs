//! The worker's loop: a request, its answer, the next. Ends when the keeper's end of the channel is closed.

use crate::open::Descriptors;
use crate::supervisor::Supervisor;
use crate::{crash, export, images, import, merging, privileges, ranges};
use catena_control::{Answered, Channel, ChannelError, IoClass, Packet, Reply, Request};

/// Serves requests until the keeper has gone.
pub(crate) fn serve(channel: &Channel) -> Result<(), ChannelError> {
    while let Some(Packet { message, fds }) = channel.receive::<Request>()? {
        if message == Request::Stop {
            // It was meant for a job that has just ended.
            continue;
        }
        let outcome = handle(channel, &message, Descriptors::new(fds));
        crash::BEFORE_REPLY.pass();
        channel.send(&Reply::End { outcome }, &[])?;
    }
    Ok(())
}

fn handle(channel: &Channel, request: &Request, mut fds: Descriptors) -> Answered {
    let fds = &mut fds;
    match request {
        Request::Inspect { format, count } => images::inspect(*format, *count, fds),
        Request::Create { images } => images::create(images, fds),
        Request::SetHidden { image, hidden } => images::set_hidden(image, *hidden, fds),
        Request::PlanReparent { images } => images::plan_reparent(images, fds),
        Request::ApplyPatches { patches } => images::apply_patches(patches, fds),
        Request::Check { images } => images::check(images, fds),
        Request::Read { chain, offset, length } => {
            ranges::read(chain, *offset, *length, fds, &mut Supervisor::new(channel))
        }
        Request::Write { chain, offset, length } => {
            ranges::write(chain, *offset, *length, fds, &mut Supervisor::new(channel))
        }
        Request::Merge { from, into, cursor, class } => {
            in_class(*class);
            merging::merge(from, into, *cursor, fds, &mut Supervisor::new(channel))
        }
        Request::MoveDown { from, into, give_back, class } => {
            in_class(*class);
            merging::move_down(from, into, *give_back, fds, &mut Supervisor::new(channel))
        }
        Request::Import { format, id, image_format: catena_types::Format::Vhd, created } => {
            import::import(*format, *id, *created, fds, &mut Supervisor::new(channel))
        }
        Request::Export { chain, format } => {
            export::export(chain, *format, fds, &mut Supervisor::new(channel))
        }
        Request::Stop => Ok(catena_control::Answer::Done),
    }
}

/// The class of this process from here on; a job that cannot have it runs all the same, and the log says so.
fn in_class(class: IoClass) {
    if let Err(error) = privileges::set_io_class(class) {
        tracing::warn!(?class, %error, "the I/O class cannot be set");
    }
}
