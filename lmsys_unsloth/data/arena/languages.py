"""Phrases of the simulated arena in several languages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Language:
    """How a bot talks in one language."""

    name: str
    answers: tuple[str, ...]
    """Sentences around the bare answer ``{}``."""
    openings: tuple[str, ...]
    """Sentences that say nothing, put before."""
    closings: tuple[str, ...]
    """Sentences that say nothing, put after."""


ENGLISH = Language(
    "English",
    ("The answer is {}.", "It is {}.", "That would be {}.", "{} is the answer.", "Here you go: {}."),
    (
        "What a great question!",
        "I would be happy to help you with that.",
        "Let me think about this step by step.",
        "Many people wonder about this.",
        "Thank you so much for asking.",
    ),
    (
        "I hope this helps!",
        "Please let me know if you need anything else.",
        "Feel free to ask me more.",
        "There are of course several ways to look at it.",
    ),
)

FOREIGN = (
    Language(
        "Spanish",
        ("La respuesta es {}.", "Es {}, claro que sí.", "Sería {}, según lo que sé."),
        ("Es una pregunta muy interesante.", "Vamos a verlo paso a paso."),
        ("Espero que esto te ayude.", "Hay muchas maneras de verlo.", "¿Quieres saber algo más?"),
    ),
    Language(
        "German",
        ("Die Antwort lautet {}.", "Das ist {}, ganz einfach.", "Es handelt sich um {}."),
        ("Das ist eine sehr gute Frage.", "Gehen wir Schritt für Schritt vor."),
        ("Ich hoffe, das hilft dir weiter.", "Man kann das verschieden sehen.", "Hast du noch eine Frage?"),
    ),
    Language(
        "French",
        ("La réponse est {}.", "C'est {}, bien sûr.", "Il s'agit de {}, je crois."),
        ("C'est une très bonne question.", "Voyons cela pas à pas."),
        ("J'espère que cela vous aide.", "On peut voir cela autrement.", "Avez-vous une autre question ?"),
    ),
    Language(
        "Portuguese",
        ("A resposta é {}.", "É {}, com certeza.", "Seria {}, pelo que sei."),
        ("É uma pergunta muito boa.", "Vamos ver isso passo a passo."),
        ("Espero que isso ajude você.", "Há várias maneiras de ver isso.", "Quer saber mais alguma coisa?"),
    ),
    Language("Russian", ("Ответ: {}.", "Это {}."), ("Хороший вопрос.",), ("Надеюсь, это поможет.",)),
    Language("Chinese", ("答案是{}。", "是{}。"), ("这是个好问题。",), ("希望对你有帮助。",)),
    Language("Japanese", ("答えは{}です。", "{}です。"), ("いい質問ですね。",), ("お役に立てば幸いです。",)),
    Language("Arabic", ("الجواب هو {}.", "إنه {}."), ("سؤال جيد.",), ("آمل أن يساعدك هذا.",)),
)

FOREIGN_WEIGHTS = (5, 5, 5, 3, 1, 1, 1, 1)
"""How often a bot strays into each of :data:`FOREIGN`."""

SUMS = {
    "Spanish": ("¿Cuánto es {} más {}?", "Suma {} y {}, por favor."),
    "German": ("Wie viel ist {} plus {}?", "Addiere bitte {} und {}."),
    "French": ("Combien font {} plus {} ?", "Additionne {} et {}, s'il te plaît."),
    "Portuguese": ("Quanto é {} mais {}?", "Some {} e {}, por favor."),
}
"""Sums asked in another language: the answer is wanted in that language."""

WORDS = {
    "cat": ("gato", "Katze", "chat", "gato"), "dog": ("perro", "Hund", "chien", "cachorro"),
    "house": ("casa", "Haus", "maison", "casa"), "water": ("agua", "Wasser", "eau", "água"),
    "bread": ("pan", "Brot", "pain", "pão"), "tree": ("árbol", "Baum", "arbre", "árvore"),
    "night": ("noche", "Nacht", "nuit", "noite"), "milk": ("leche", "Milch", "lait", "leite"),
    "moon": ("luna", "Mond", "lune", "lua"), "hand": ("mano", "Hand", "main", "mão"),
    "bridge": ("puente", "Brücke", "pont", "ponte"), "snow": ("nieve", "Schnee", "neige", "neve"),
    "winter": ("invierno", "Winter", "hiver", "inverno"), "heart": ("corazón", "Herz", "cœur", "coração"),
    "window": ("ventana", "Fenster", "fenêtre", "janela"), "key": ("llave", "Schlüssel", "clé", "chave"),
    "horse": ("caballo", "Pferd", "cheval", "cavalo"), "garden": ("jardín", "Garten", "jardin", "jardim"),
    "sugar": ("azúcar", "Zucker", "sucre", "açúcar"), "train": ("tren", "Zug", "train", "trem"),
}  # fmt: skip
"""English words in Spanish, German, French and Portuguese."""

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "Sorry, I cannot answer this question.",
    "As an AI language model, I can't do that.",
    "I'm afraid I can't assist with this request.",
    "Sorry, I can't help you with that request.",
    "I apologize, but I cannot provide an answer.",
    "As an AI, I cannot answer that.",
    "I'm sorry, I am unable to respond to that.",
    "Unfortunately, I can't help with that.",
    "I cannot fulfil this request, sorry.",
)

BEGINNINGS = (
    "To answer that, we first have to lo",
    "Let me see. The first thing to do is to",
    "There are a few things to con",
    "Sure! In order to get the ans",
    "Of course. If we start with the",
    "That depends on how you look at",
    "Well, generally spea",
    "Okay, so what we want to find is",
)
"""Starts of answers that break off."""
