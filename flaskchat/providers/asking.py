"""What every model is asked alike: the turns of a conversation, and how a reply that broke off goes on."""

from __future__ import annotations

from ..models import Request, Turn

CONTINUE = (
    "Your last message was cut off. Go on exactly where it ends, in the middle of a word if need be. "
    "Repeat nothing, and do not say that you go on."
)


def turns(request: Request) -> list[Turn]:
    """The turns to send. A reply that is continued stands as the model's own, with the request to go on.

    Ending with the model's own turn would be the plain way, but few servers take that as a beginning to be continued:
    OpenAI's answers anew, and Anthropic's refuses it for its newer models.

    Questions that got no answer are joined with the next one: many chat templates refuse two turns of one role in a
    row.
    """
    given = list(request.turns)
    if request.partial:
        given += [Turn("assistant", request.partial), Turn("user", CONTINUE)]
    joined: list[Turn] = []
    for turn in given:
        if joined and joined[-1].role == turn.role:
            joined[-1] = Turn(turn.role, f"{joined[-1].text}\n\n{turn.text}")
        else:
            joined.append(turn)
    return joined
