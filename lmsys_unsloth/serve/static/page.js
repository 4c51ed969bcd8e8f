"use strict";
const element = (id) => document.getElementById(id);

async function compare(event) {
  event.preventDefault();
  element("error").textContent = "";
  const headers = { "Content-Type": "application/json" };
  if (element("token").value) headers.Authorization = `Bearer ${element("token").value}`;
  const pair = {
    prompt: element("prompt").value,
    response_a: element("a").value,
    response_b: element("b").value,
  };
  try {
    const response = await fetch("/v1/preferences", {
      method: "POST",
      headers,
      body: JSON.stringify({ pairs: [pair] }),
    });
    const answer = await response.json();
    if (!response.ok) throw new Error([answer.detail].flat().join("\n"));
    for (const [name, p] of Object.entries(answer.preferences[0])) {
      element(`bar-${name}`).style.width = `${100 * p}%`;
      element(`p-${name}`).textContent = `${(100 * p).toFixed(1)}%`;
    }
    element("result").hidden = false;
  } catch (error) {
    element("error").textContent = error.message;
  }
}

element("form").addEventListener("submit", compare);
