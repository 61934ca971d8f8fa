"""Short-term memory: the turns of conversations; see `stores.view.conversations`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common.errors import InvalidInput
from common.names import check_name
from common.types import Json
from stores.log.record import Op
from stores.memory.memory import MAX_CONVERSATION
from stores.shard.core import ShardCore
from stores.view.conversations import Conversations
from stores.writes import lookups
from stores.writes.group_commit import Key, Pending, Planned

Change = tuple[Json | None, Json]


def turns_key(namespace: str, conversation: str) -> Key:
    return "turns", namespace, conversation


class ShardConversations:
    def __init__(self, core: ShardCore) -> None:
        self._core = core

    def push(
        self,
        namespace: str,
        conversation: str,
        turns: Sequence[Mapping[str, Any]],
        *,
        op_id: str,
        now: float,
    ) -> Json:
        """Add turns `{role, text}` to a conversation. With `store.max_turns`, only the newest `max_turns` are kept.
        Returns `{pushed, length, dropped}`."""
        limit = self._core.config.max_turns
        return self._change(
            namespace,
            conversation,
            lambda held: held.plan_push(conversation, turns, now=now, limit=limit),
            op_id=op_id,
            now=now,
            request=["push", [*turns]],
        )

    def pop(self, namespace: str, conversation: str, *, op_id: str, now: float) -> Json:
        """Remove the newest turn and return `{turn, length}`. `turn` is None if the conversation is empty, or if a
        retry comes so late that the turn is no longer kept."""
        done = self._change(
            namespace,
            conversation,
            lambda held: held.plan_pop(conversation),
            op_id=op_id,
            now=now,
            request=["pop"],
        )
        with self._core.view_lock.read():
            found = done["popped"] is not None
            turn = self._held(namespace).popped(conversation, done["popped"]) if found else None
        return {"turn": turn, "length": done["length"]}

    def rewind(self, namespace: str, conversation: str, n: int, *, op_id: str, now: float) -> Json:
        """Remove the newest `n` turns. Returns `{removed, length}`."""
        return self._change(
            namespace,
            conversation,
            lambda held: held.plan_rewind(conversation, n),
            op_id=op_id,
            now=now,
            request=["rewind", n],
        )

    def peek(self, namespace: str, conversation: str, n: int = 1) -> list[Json]:
        """The newest `n` turns `{number, role, text, time}`, oldest first."""
        with self._core.view_lock.read():
            return self._held(namespace).peek(conversation, n)

    def _change(
        self,
        namespace: str,
        conversation: str,
        change: Callable[[Conversations], Change],
        *,
        op_id: str,
        now: float,
        request: list[Any],
    ) -> Json:
        check_name(namespace, "namespace")
        if not isinstance(conversation, str) or not 0 < len(conversation) <= MAX_CONVERSATION:
            raise InvalidInput(
                f"conversation = {str(conversation)[:64]!r}: must be text of 1 to {MAX_CONVERSATION} characters",
                param="conversation",
            )

        def plan(pending: Pending) -> Planned:
            operation, answer = change(self._held(namespace))
            body = {"namespace": namespace, **operation} if operation else None
            return Planned(drafts=[(Op.TURNS, body, b"")] if body else [], result=answer)

        answer: Json = self._core.write(
            op_id,
            lookups.request_digest("turns", namespace, conversation, request),
            plan,
            now=now,
            spaces=[namespace],
            keys=[turns_key(namespace, conversation)],
        )
        return answer

    def _held(self, namespace: str) -> Conversations:
        space = self._core.space(namespace)
        return space.conversations if space else Conversations()
