"""Why a system gives a clip its score: contributions of its parts, and checks of their truth."""
