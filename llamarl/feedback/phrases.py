"""Words of simulated users and assistants, and what the users secretly like in them.

A reply is an opener, a body, a detail and a closer. Each has features that add up, so that the liking of a million
replies is one sum of table rows, and the same liking can be read off any text by looking for its words.
"""

import re

import numpy as np

FEATURES = ("warm", "curt", "rude", "concrete", "words")
"""Features that users notice: warm, curt and rude words, words that make a reply concrete, and its length in words."""

PREFERENCE = np.array([0.7, -0.6, -1.5, 0.5, 0.015])
"""The amount that each feature adds to the log-odds of a love reaction in the first week."""

DRIFT = np.array([-0.04, 0.0, 0.0, 0.05, 0.0])
"""The change of `PREFERENCE` in a week: users tire of warmth, and come to expect substance."""

MOST = np.array([3.0, 2.0, 2.0, 3.0, 60.0])
"""More of a feature than this is not noticed."""

WORDS = {
    "warm": frozenset(["glad", "wonderful", "lovely", "happy", "together", "proud", "encanta", "alegra", "juntos"]),
    "curt": frozenset(["whatever", "fine", "ok", "obviously", "obvio", "vale"]),
    "rude": frozenset(["stupid", "boring", "silly", "tonta", "aburrida"]),
    "concrete": frozenset(["example", "first", "step", "minutes", "ejemplo", "primero", "paso", "minutos"]),
}
"""The words behind each feature but the length; an English and a Spanish part."""


PIECES = ("topic", "ask", "mood", "opener", "body", "detail", "closer")
"""Parts of a prompt (ask, mood) and of a reply (the rest); asks and bodies name the topic."""
REPLY_PIECES = ("opener", "body", "detail", "closer")


Phrasebook = dict[str, tuple[str, ...]]
"""The pieces of one language, by name; `{}` stands for the topic, and the first closer says nothing."""

ENGLISH: Phrasebook = {
    "topic": (
        *("sourdough bread", "my new job", "a trip to Lisbon", "learning piano", "my cat", "running a marathon"),
        *("a first date", "the night sky", "tomato plants", "an old camera", "chess openings", "moving house"),
        *("a birthday party", "my thesis", "winter hiking", "a broken bike", "saving money", "sleeping better"),
        *("a poem", "my grandmother", "a job interview", "the ocean", "painting", "a board game night"),
    ),
    "ask": (
        *("Tell me about {}.", "I need help with {}.", "What should I know about {}?", "Give me a plan for {}."),
        *("Can we talk about {}?", "Surprise me with a thought on {}.", "How do I begin with {}?", "Why {}?"),
    ),
    "mood": (
        *("I am tired today.", "I have ten minutes.", "My friend told me to ask.", "It is raining here."),
        *("I am a beginner.", "I tried once and gave up.", "Be honest.", "I feel hopeful.", "Keep it short."),
        *("I am nervous.", "It is for my sister.", "I read a book on it.", "Nobody else is awake.", "No rush."),
    ),
    "opener": (
        *("Sure.", "Fine, whatever.", "I am so glad you ask!", "What a lovely question!", "Let us see.", "Ok."),
        *(
            "Wonderful, I am happy to think about it together.",
            "Obviously.",
            "Good question.",
            "That is a silly thing.",
        ),
    ),
    "body": (
        *("With {} it helps to begin small and go on daily.", "Most people worry too much about {}."),
        *("The first step with {} is to look at what you have.", "There is an example in every town of {} done well."),
        *("I think {} is worth your time.", "Honestly, {} is a boring subject.", "You can be proud of {}."),
        *("Take twenty minutes for {} each morning.", "People have loved {} for a long time.", "{} needs patience."),
        *("Ask three friends what {} means to them.", "Write down what you expect of {} before you begin."),
    ),
    "detail": (
        *("Then rest.", "For example, set a timer and stop when it rings.", "It is stupid to hurry."),
        *(
            "Keep notes.",
            "A second step follows on its own.",
            "Nothing else matters much.",
            "The weekend is a good time.",
        ),
        *("Share it with somebody.", "You will see results in a month.", "Some days will be slow.", "That is all."),
        *("An old trick is to do the hard part first.", "We can look at it together next time.", "Mind the costs."),
    ),
    "closer": (
        *(
            "",
            "Does that help?",
            "I am happy to hear more.",
            "Tell me how it goes.",
            "What do you think?",
            "Good luck.",
        ),
        *("Good luck.", "Take care.", "Shall we go on?"),
    ),
}

SPANISH: Phrasebook = {
    "topic": (
        *("el pan casero", "mi trabajo nuevo", "un viaje a Lisboa", "aprender piano", "mi gata", "correr un maratón"),
        *("una primera cita", "el cielo nocturno", "mis tomates", "una cámara vieja", "el ajedrez", "la mudanza"),
    ),
    "ask": ("Háblame de {}.", "Necesito ayuda con {}.", "¿Qué debo saber sobre {}?", "Dame un plan para {}."),
    "mood": (
        *("Hoy estoy cansado.", "Tengo diez minutos.", "Llueve.", "Soy principiante.", "Sé sincero.", "Sin prisa."),
        *("Estoy nerviosa.", "Es para mi hermana."),
    ),
    "opener": ("Claro.", "Vale.", "¡Me alegra que preguntes!", "¡Me encanta!", "Veamos.", "Obvio."),
    "body": (
        *("Con {} conviene empezar poco a poco.", "El primero paso con {} es mirar lo que tienes."),
        *("Creo que {} merece tu tiempo.", "La verdad, {} es cosa aburrida.", "Dedica veinte minutos a {} cada día."),
        *("Mucha gente disfruta de {}.", "{} pide paciencia."),
    ),
    "detail": (
        *("Luego descansa.", "Por ejemplo, pon un reloj y para cuando suene.", "Es tonta la prisa.", "Toma notas."),
        *("Lo vemos juntos otro día.", "Verás resultados en un mes.", "Eso es todo.", "Cuida los gastos."),
    ),
    "closer": ("", "¿Te sirve?", "Cuéntame cómo va.", "¿Qué opinas?", "Suerte.", "Cuídate."),
}


def features_of(text: str) -> np.ndarray:
    """The features of any text, in the order of `FEATURES`, before `MOST` caps them. Shape [features]."""
    words = re.findall(r"\w+", text.lower())
    return np.array([*(sum(word in WORDS[name] for word in words) for name in FEATURES[:-1]), len(words)], dtype=float)


def liking(features: np.ndarray, week: np.ndarray | float = 0.0) -> np.ndarray:
    """Honest users' liking of replies: what these add to the log-odds of a love reaction.

    Args:
        features: [replies, features], from `features_of`.
        week: [replies] or one number: weeks since the start of the simulation.

    Returns:
        [replies]
    """
    noticed = np.minimum(features, MOST)
    first: np.ndarray = noticed @ PREFERENCE
    later: np.ndarray = first + week * (noticed @ DRIFT)
    return later
