"""The shortest way from an image to a hyperplane that stays inside the box."""

import torch
from torch import Tensor

from advprune.types import Images, Threat, per_image


def to_plane(x: Images, normal: Tensor, gain: Tensor, threat: Threat) -> Tensor:
    """The shortest offset, in the norm of the threat, by which normal . offset is `gain`.

    Every pixel moves in the steepest direction until it meets a wall of the box, and all stop when
    the plane is reached: in both norms that is the projection onto plane and box. So the gain is a
    concave, piecewise linear function of the time, with a bend where a pixel stops. Sorting the
    bends gives the time exactly, for all images at once.

    Args:
        x: float32 (N, C, H, W) inside the box of the threat.
        normal: like x; it need not have length one.
        gain: (N,), of either sign.

    Returns:
        float32 (N, C, H, W). Where the box holds no point of the plane, the pixels end at the walls
        nearest to it; where the normal is zero, the offset is.
    """
    velocity = threat.steepest(normal) * per_image(torch.where(gain < 0, -1.0, 1.0))
    room = torch.where(velocity < 0, x - threat.low, threat.high - x)
    speed, slope, room = (
        velocity.abs().flatten(1),
        (normal * velocity).abs().flatten(1),
        room.flatten(1),
    )
    # A pixel that does not move never stops, and adds nothing before it does.
    until = torch.where(speed > 0, room / speed, float("inf"))
    until, order = until.sort(dim=1)
    slope = slope.gather(1, order)
    stopped = torch.where(slope > 0, slope * until, 0.0).cumsum(dim=1)
    moving = slope.flip(1).cumsum(dim=1).flip(1)
    # Before bend k pixels 0..k-1 stand still, and pixels k.. are on their way.
    before = torch.cat([torch.zeros_like(stopped[:, :1]), stopped[:, :-1]], dim=1)
    wanted = gain.abs()[:, None]
    times = (wanted - before) / moving.clamp_min(1e-12)
    reached = (moving > 0) & (times <= until)
    first = reached.to(torch.uint8).argmax(dim=1, keepdim=True)
    time = torch.where(reached.any(dim=1, keepdim=True), times.gather(1, first), float("inf"))
    distance = torch.minimum(torch.where(speed > 0, time * speed, 0.0), room)
    return distance.reshape(x.shape) * velocity.sign()
