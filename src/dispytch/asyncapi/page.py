"""A document as one HTML page: no scripts, nothing from elsewhere, every text escaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from dispytch.asyncapi.markup import Markup, escaped, name_of, prose, tag
from dispytch.asyncapi.names import Names, slug
from dispytch.asyncapi.pieces import address_of, as_map, counted, term, transport_of, words_of
from dispytch.asyncapi.samples import sample
from dispytch.asyncapi.schemas import referred, resolve
from dispytch.asyncapi.shapes import Shapes, code_block, inline_json

__all__ = ["to_html"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_ACTIONS = {"receive": "receives", "send": "sends"}


def to_html(document: Mapping[str, Any]) -> str:
    """A document as a page that needs nothing else: it can be sent by mail, and read without a network.

    Whatever the document holds is shown as text, and the page forbids itself scripts and requests.

    Args:
        document: From `document`; another AsyncAPI 3 document works as far as it has the same parts.
    """
    return _Page(document).html()


class _Page:
    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._components: dict[str, Any] = as_map(as_map(document.get("components")).get("schemas"))
        self._messages: dict[str, Any] = as_map(as_map(document.get("components")).get("messages"))
        self._channels = as_map(document.get("channels"))
        self._operations = as_map(document.get("operations"))
        names = Names()
        self._ids = {
            (kind, name): names.unique(f"{kind}-{slug(name, kind)}")
            for kind, things in (
                ("channel", self._channels),
                ("operation", self._operations),
                ("message", self._messages),
                ("schema", self._components),
            )
            for name in things
        }
        self._shapes = Shapes(self._components, self._schema_link)
        self._shown = self._shown_in_messages()

    def html(self) -> str:
        info = as_map(self._document.get("info"))
        title = str(info.get("title", "AsyncAPI"))
        style = files("dispytch.asyncapi").joinpath("page.css").read_text("utf-8")
        head = tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("meta", name="referrer", content="no-referrer"),
            tag("title", f"{title} {info.get('version', '')}".strip()),
            tag("style", Markup(style)),
        )
        body = tag(
            "body",
            tag("a", "Skip to the content", href="#content", class_="skip"),
            self._header(info, title),
            tag("div", self._navigation(), self._main(), class_="layout"),
            tag("footer", tag("p", f"AsyncAPI {self._document.get('asyncapi', '')}, made by Dispytch")),
        )
        return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"

    # --- around

    def _header(self, info: Mapping[str, Any], title: str) -> Markup:
        handlers = {one.get("x-handler", key) for key, one in self._of_action("receive")}
        sent = {one.get("title", key) for key, one in self._of_action("send")}
        counts = [
            counted(len(self._channels), "channel"),
            counted(len(handlers), "handler"),
            f"{counted(len(sent), 'event')} sent",
        ]
        return tag(
            "header",
            tag("p", "Event API", class_="kicker"),
            tag("h1", title, " ", tag("span", str(info.get("version", "")), class_="version")),
            tag("div", prose(info["description"]), class_="lead") if info.get("description") else None,
            tag("ul", *(tag("li", one) for one in counts), class_="counts"),
        )

    def _of_action(self, action: str) -> Iterator[tuple[str, Any]]:
        return ((key, one) for key, one in self._operations.items() if one.get("action") == action)

    def _navigation(self) -> Markup:
        groups = [
            ("channels", "Channels", "channel", self._channels),
            ("messages", "Messages", "message", self._messages),
            ("schemas", "Schemas", "schema", self._separate_schemas()),
        ]
        parts = [
            Markup(
                tag("p", tag("a", label, href=f"#{anchor}"), class_="group")
                + tag("ul", *(self._entry(kind, name) for name in things))
            )
            for anchor, label, kind, things in groups
            if things
        ]
        inner = tag("details", tag("summary", "Contents"), tag("div", *parts))
        return tag("nav", inner, aria_label="Contents")

    def _entry(self, kind: str, name: str) -> Markup:
        label: Markup | str = name
        if kind == "channel":
            label = self._channel_label(name)
        else:
            things = self._messages if kind == "message" else self._components
            title = as_map(things[name]).get("title")
            if isinstance(title, str) and sum(as_map(one).get("title") == title for one in things.values()) == 1:
                label = title
        return tag("li", tag("a", label, href=f"#{self._ids[kind, name]}"))

    def _channel_label(self, name: str) -> Markup:
        channel = as_map(self._channels[name])
        address = channel.get("address")
        if sum(as_map(one).get("address") == address for one in self._channels.values()) == 1:
            return address_of(channel, name)
        return Markup(address_of(channel, name) + escaped(f" {transport_of(channel)}"))

    def _main(self) -> Markup:
        schemas = self._separate_schemas()
        parts = [self._servers()]
        parts.append(
            tag(
                "section",
                tag("h2", "Channels", id="channels"),
                *(self._channel(name, as_map(channel)) for name, channel in self._channels.items()),
            )
        )
        parts.append(
            tag(
                "section",
                tag("h2", "Messages", id="messages"),
                *(self._message(name, as_map(message)) for name, message in self._messages.items()),
            )
        )
        if schemas:
            parts.append(
                tag(
                    "section",
                    tag("h2", "Schemas", id="schemas"),
                    *(self._schema(name) for name in schemas),
                )
            )
        return tag("main", *parts, id="content", tabindex="-1")

    def _servers(self) -> Markup:
        servers = as_map(self._document.get("servers"))
        if not servers:
            return Markup()
        rows = [
            tag(
                "tr",
                tag("th", name, scope="row"),
                tag("td", name_of(f"{one.get('host', '')}{one.get('pathname', '')}")),
                tag("td", str(one.get("protocol", ""))),
            )
            for name, one in servers.items()
        ]
        heads = tag("tr", *(tag("th", text, scope="col") for text in ("Server", "Host", "Protocol")))
        table = tag("table", tag("caption", "Servers"), tag("thead", heads), tag("tbody", *rows), class_="servers")
        return tag("section", tag("h2", "Servers", id="servers"), table)

    # --- channels and operations

    def _channel(self, name: str, channel: Mapping[str, Any]) -> Markup:
        transport = transport_of(channel)
        badge = tag("span", transport, class_="transport") if transport else None
        operations = [
            (key, one)
            for key, one in self._operations.items()
            if as_map(one.get("channel")).get("$ref") == f"#/channels/{name}"
        ]
        operations.sort(key=lambda item: item[1].get("action") != "receive")
        return tag(
            "article",
            tag("h3", address_of(channel, name), id=self._ids["channel", name]),
            tag("p", badge, *self._places(channel), class_="where"),
            prose(channel["description"]) if channel.get("description") else None,
            self._parameters(as_map(channel.get("parameters"))),
            *(self._operation(key, as_map(one)) for key, one in operations),
            class_="channel",
        )

    def _places(self, channel: Mapping[str, Any]) -> Iterator[Markup]:
        amqp = as_map(as_map(channel.get("bindings")).get("amqp"))
        for kind in ("exchange", "queue"):
            if name := as_map(amqp.get(kind)).get("name"):
                yield tag("span", f"{kind} ", name_of(name))
        if pattern := channel.get("x-pattern"):
            yield tag("span", "pattern ", name_of(pattern))
        for reference in channel.get("servers", ()):
            yield tag("span", "on ", tag("code", str(as_map(reference).get("$ref", "")).rpartition("/")[2]))

    def _parameters(self, parameters: Mapping[str, Any]) -> Markup:
        if not parameters:
            return Markup()
        rows = []
        for name, one in parameters.items():
            schema = one.get("x-schema")
            facts = [tag("li", "one of ", Markup(", ".join(map(inline_json, one["enum"]))))] if one.get("enum") else []
            if location := one.get("location"):
                facts.append(tag("li", "the same as ", tag("code", str(location))))
            if segment := one.get("x-segment"):
                facts.append(tag("li", "in the program ", tag("code", str(segment))))
            rows.append(
                tag(
                    "tr",
                    tag("th", tag("code", name), scope="row"),
                    tag(
                        "td",
                        tag("p", self._shapes.type_of(schema), class_="type") if schema else None,
                        prose(one["description"]) if one.get("description") else None,
                        tag("ul", *facts, class_="facts") if facts else None,
                    ),
                )
            )
        heads = tag("tr", tag("th", "Segment", scope="col"), tag("th", "What it is", scope="col"))
        caption = tag("caption", "Segments of the address")
        return tag("table", caption, tag("thead", heads), tag("tbody", *rows), class_="fields")

    def _operation(self, name: str, operation: Mapping[str, Any]) -> Markup:
        action = str(operation.get("action", ""))
        title = str(operation.get("title") or name)
        tags = [str(one.get("name", "")) for one in operation.get("tags", ()) if isinstance(one, dict)]
        return tag(
            "div",
            tag(
                "h4",
                tag("span", _ACTIONS.get(action, action), class_="action"),
                " ",
                tag("span", title, class_="name"),
                id=self._ids["operation", name],
            ),
            prose(operation["summary"], class_="summary") if operation.get("summary") else None,
            prose(operation["description"]) if operation.get("description") else None,
            tag("dl", *self._operation_facts(operation, tags), class_="about"),
            class_=f"operation {action if action in _ACTIONS else ''}".strip(),
        )

    def _operation_facts(self, operation: Mapping[str, Any], tags: Sequence[str]) -> Iterator[Markup]:
        messages = [str(as_map(one).get("$ref", "")).rpartition("/")[2] for one in operation.get("messages", ())]
        if messages:
            yield term("Messages" if len(messages) > 1 else "Message", *map(self._message_link, messages))
        if handler := operation.get("x-handler"):
            yield term("Handler", name_of(handler))
        if group := operation.get("x-group"):
            yield term("Group", name_of(group))
        if (queue := operation.get("x-queue")) and queue != group:
            yield term("Queue", name_of(queue))
        if pattern := operation.get("x-pattern"):
            yield term("Pattern", name_of(pattern))
        if batch := as_map(operation.get("x-batch")):
            yield term("Batches", f"of up to {batch.get('size')}, after {batch.get('wait')} s at the latest")
        if acknowledgement := operation.get("x-acknowledgement"):
            yield term("Acknowledged", words_of(str(acknowledgement)))
        if letters := as_map(operation.get("x-dead-letter")):
            yield term("Dead letters", name_of(letters.get("address", "")))
        if tags:
            yield term("Tags", *(tag("span", one, class_="tag") for one in tags))

    def _message_link(self, name: str) -> Markup:
        known = self._ids.get(("message", name))
        title = str(as_map(self._messages.get(name)).get("title") or name)
        return tag("a", title, href=f"#{known}") if known else tag("span", title)

    # --- messages and schemas

    def _message(self, name: str, message: Mapping[str, Any]) -> Markup:
        title = str(message.get("title") or name)
        payload = message.get("payload", {})
        target = self._payload_target(message)
        has_own_anchor = target is not None and self._shown.get(target) == name
        facts = []
        if content_type := message.get("contentType"):
            facts.append(tag("span", tag("code", str(content_type))))
        if key := message.get("x-ordering-key"):
            facts.append(tag("span", "ordered by ", tag("code", str(key))))
        if title != name:
            facts.append(tag("span", "id ", tag("code", name)))
        value, is_given = sample(payload, self._components)
        return tag(
            "article",
            tag("h3", title, id=self._ids["message", name]),
            tag("p", *facts, class_="where") if facts else None,
            prose(message["summary"], class_="summary") if self._is_news(message) else None,
            prose(message["description"]) if message.get("description") else None,
            self._used_by(name),
            tag(
                "div",
                tag(
                    "div",
                    tag("h4", "Payload", id=self._ids["schema", target] if has_own_anchor and target else None),
                    self._shapes.table(payload, f"Payload of {title}"),
                    self._headers(message, title),
                ),
                tag(
                    "div",
                    tag("h4", "Example" if is_given else "Example (made up)"),
                    code_block(value, f"Example of {title}"),
                    class_="example",
                ),
                class_="columns",
            ),
            class_="message",
        )

    def _is_news(self, message: Mapping[str, Any]) -> bool:
        """Whether a message's summary is not what its payload says anyway."""
        summary, payload = message.get("summary"), resolve(message.get("payload"), self._components)
        return bool(summary) and " ".join(str(summary).split()) not in " ".join(str(payload.get("description")).split())

    def _used_by(self, name: str) -> Markup:
        users = [
            tag(
                "a",
                f"{_ACTIONS.get(one.get('action'), '')} {one.get('title') or key}".strip(),
                href=f"#{self._ids['operation', key]}",
            )
            for key, one in self._operations.items()
            if any(str(as_map(ref).get("$ref", "")).rpartition("/")[2] == name for ref in one.get("messages", ()))
        ]
        return tag("p", "Used by: ", Markup(", ".join(users)), class_="users") if users else Markup()

    def _headers(self, message: Mapping[str, Any], title: str) -> Markup:
        headers = message.get("headers")
        if not headers:
            return Markup()
        parts = as_map(headers).get("allOf")
        parts = parts if isinstance(parts, list) else []
        shared = [one for one in parts if referred(one) is not None]
        own = {"allOf": [one for one in parts if one not in shared]} if shared else headers
        return tag(
            "details",
            tag("summary", "Headers"),
            *(tag("p", "All of ", self._shapes.type_of(one), ", with:", class_="type") for one in shared),
            self._shapes.table(own, f"Headers of {title}"),
            class_="headers",
        )

    def _schema(self, name: str) -> Markup:
        schema = self._components[name]
        title = str(as_map(schema).get("title") or name)
        return tag(
            "article",
            tag("h3", title, id=self._ids["schema", name]),
            tag("p", tag("span", "id ", tag("code", name)), class_="where") if title != name else None,
            self._shapes.table(schema, f"Fields of {title}"),
            class_="schema",
        )

    def _payload_target(self, message: Mapping[str, Any]) -> str | None:
        name = referred(message.get("payload"))
        return name if name in self._components else None

    def _shown_in_messages(self) -> dict[str, str]:
        """The components that are shown as the payload of a message, each with the first one that does."""
        found: dict[str, str] = {}
        for name, message in self._messages.items():
            target = self._payload_target(as_map(message))
            if target is not None:
                found.setdefault(target, name)
        return found

    def _separate_schemas(self) -> list[str]:
        return [name for name in self._components if name not in self._shown]

    def _schema_link(self, name: str) -> str | None:
        return f"#{self._ids['schema', name]}" if ("schema", name) in self._ids else None
