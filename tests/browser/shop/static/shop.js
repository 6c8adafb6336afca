// What a host does with the chat: opens it by a button of its own, and listens to what it tells.

const chat = document.querySelector("flask-chat");
const ask = document.querySelector("#ask");

ask?.addEventListener("click", () => {
  chat.hidden = !chat.hidden;
  ask.setAttribute("aria-expanded", String(!chat.hidden));
});

for (const type of ["message-sent", "run-finished", "conversationchange"]) {
  document.addEventListener(type, ({ target, detail }) => {
    document.querySelector("#told").append(`${type} ${target.localName} ${JSON.stringify(detail)}\n`);
  });
}
