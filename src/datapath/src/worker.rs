//! The worker's loop: a request, its answer, the next. Ends when the keeper's end of the channel is closed.

use crate::open::Descriptors;
use crate::supervisor::Supervisor;
use crate::trouble::trouble;
use crate::{copying, crash, export, images, import, merging, ranges, repair};
use catena_control::{Answered, Channel, ChannelError, Packet, Reply, Request, TroubleKind};
use catena_types::Format;

/// Serves requests until the keeper has gone.
pub(crate) fn serve(channel: &Channel) -> Result<(), ChannelError> {
    while let Some(Packet { message, fds }) = channel.receive::<Request>()? {
        if matches!(message, Request::Stop | Request::Pace(_) | Request::Enlarged { .. }) {
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
        Request::Inspect { formats } => images::inspect(formats, fds),
        Request::Create { images } => images::create(images, fds),
        Request::SetHidden { image, hidden } => images::set_hidden(image, *hidden, fds),
        Request::Grow { image, size } => images::grow(image, *size, fds),
        Request::Sizes { format, virtual_size } => Ok(images::sizes(*format, *virtual_size)),
        Request::Fit { image, before, size } => images::fit(image, *before, *size, fds),
        Request::PlanReparent { images } => images::plan_reparent(images, fds),
        Request::ApplyPatches { patches } => images::apply_patches(patches, fds),
        Request::Check { images } => repair::check(images, fds),
        Request::PlanRepair { image, expected } => repair::plan_repair(image, expected, fds),
        Request::Repair { image, expected } => repair::repair(image, expected, fds),
        Request::Trim { image } => repair::trim(image, fds),
        Request::Read { chain, offset, length } => {
            ranges::read(chain, *offset, *length, fds, &mut Supervisor::new(channel))
        }
        Request::Write { chain, offset, length } => {
            ranges::write(chain, *offset, *length, fds, &mut Supervisor::new(channel))
        }
        Request::Merge { from, into, cursor, pace } => {
            merging::merge(from, into, *cursor, fds, &mut Supervisor::paced(channel, *pace))
        }
        Request::MoveDown { from, into, give_back, pace } => {
            merging::move_down(from, into, *give_back, fds, &mut Supervisor::paced(channel, *pace))
        }
        Request::Room { from, into } => merging::room(from, into, fds),
        Request::Import { format, id, image_format: Format::Vhd, created } => {
            import::import(*format, *id, *created, fds, &mut Supervisor::new(channel))
        }
        Request::Copy { chain, id, image_format: Format::Vhd, created } => {
            copying::copy(chain, *id, *created, fds, &mut Supervisor::new(channel))
        }
        Request::Import { image_format: Format::Raw, .. }
        | Request::Copy { image_format: Format::Raw, .. } => {
            Err(trouble(TroubleKind::Unsupported, "a raw disk is only read"))
        }
        Request::Export { chain, format } => {
            export::export(chain, *format, fds, &mut Supervisor::new(channel))
        }
        Request::Stop | Request::Pace(_) | Request::Enlarged { .. } => Ok(catena_control::Answer::Done),
    }
}
